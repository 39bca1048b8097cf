"""What a backend on transformers is built from: for workers, as most of it imports torch.

`import sftrun` imports none of it.
"""
