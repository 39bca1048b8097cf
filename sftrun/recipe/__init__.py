"""Recipes: reading, validating and resolving them."""
