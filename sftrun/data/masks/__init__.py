"""Masks: finds the trained text of a conversation in the render of any chat template, and proves it."""
