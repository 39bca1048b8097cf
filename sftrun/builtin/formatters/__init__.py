"""Formatters: they turn a row into a conversation."""
