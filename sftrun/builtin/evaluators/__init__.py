"""Evaluators: they score the base and the tuned model."""
