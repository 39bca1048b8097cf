"""Trackers: they follow the events of a run."""
