"""Worker processes and training on several machines: starting ranks, handling signals and failures, joining nodes."""
