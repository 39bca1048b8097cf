"""Judges: they grade one answer."""
