"""Processes and machines: starting workers, handling signals and failures, joining nodes."""
