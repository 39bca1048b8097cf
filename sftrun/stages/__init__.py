"""The stages of a run: each reads and writes the run directory, and none imports another."""
