"""Estimates the memory of a training from the model's config alone."""
