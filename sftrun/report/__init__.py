"""What a run directory says, as a page to read and as a model card."""
