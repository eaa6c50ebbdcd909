"""Does the hypernetwork do anything: measurements, verdicts, and the report of `diagnose`."""
