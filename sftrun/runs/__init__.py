"""The run directory: its files, lock, resume, and the history of its training."""
