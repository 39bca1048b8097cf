"""Unsloth for sftrun: a backend and an exporter. Only worker processes import unsloth."""
