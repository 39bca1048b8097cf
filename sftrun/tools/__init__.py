"""The Python side of the commands that are more than one stage."""
