"""Transforms: they change, drop or add conversations."""
