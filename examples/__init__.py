"""Worked examples, one folder per task."""
