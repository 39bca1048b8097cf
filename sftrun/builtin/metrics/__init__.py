"""Metrics: they score answers against references."""
