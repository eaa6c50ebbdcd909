"""Measurements of what a hypernetwork costs, each a script: ``python -m benchmarks.step_time``."""
