"""Maskers: they choose the spans that are trained."""
