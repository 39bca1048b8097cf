"""Text to token ids: the tokenizer, and which ids of a sample carry loss."""
