"""Exporters: they turn the tuned model into something to deploy."""
