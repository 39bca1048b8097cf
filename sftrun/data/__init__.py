"""Data: turns the rows of a source into prepared samples, and reads prepared data. Public API for plugins.

- `IGNORED`: the label of tokens without loss (-100).
- `Samples(file)`: the samples of a prepared split (`prepared/train.arrow`), memory-mapped.
- `load_tokenizer(recipe.model)`: the tokenizer and chat template of a recipe's model.
- `prompt_encoder(recipe.model)`: a function from messages to the token ids that a model is asked with.
- `read_packs(file)`: the packs of a split (`prepared/train.packs.arrow`), memory-mapped.

The names load on first use, so that importing this package stays light. Its modules are private.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sftrun.data.asking import prompt_encoder
    from sftrun.data.pack import read_packs
    from sftrun.data.samples import Samples
    from sftrun.data.store import IGNORED
    from sftrun.data.tokens.tokenizer import load_tokenizer

_LATE = {
    "IGNORED": "sftrun.data.store",
    "Samples": "sftrun.data.samples",
    "load_tokenizer": "sftrun.data.tokens.tokenizer",
    "prompt_encoder": "sftrun.data.asking",
    "read_packs": "sftrun.data.pack",
}


def __getattr__(name: str) -> Any:
    """Loads a public name on first use, because its module may import numpy or the recipe engine."""
    if name not in _LATE:
        raise AttributeError(f"module 'sftrun.data' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_LATE[name]), name)


__all__ = ["IGNORED", "Samples", "load_tokenizer", "prompt_encoder", "read_packs"]
