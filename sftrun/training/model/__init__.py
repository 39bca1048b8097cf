"""Base models and adapters: loading, quantising, merging, and faster heads and attention."""
