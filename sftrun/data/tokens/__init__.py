"""Tokens: the tokenizer, and the positions of trained text in token ids."""
