"""Data: turns the rows of a source into prepared samples, and reads prepared data. Public API for plugins.

- `IGNORED`: the label of tokens without loss (-100).
- `cache_folder()`: the folder of caches, `SFTRUN_CACHE` or the user's cache folder.
- `load_tokenizer(recipe.model)`: the tokenizer and chat template of a recipe's model.
- `read_samples(file)`: yields the samples of a prepared split (`prepared/train.arrow`).
- `to_sample(row)`: a row of such a file, read with another library, as a sample.
- `read_packs(file)`: the packs of a split (`prepared/train.packs.arrow`), memory-mapped.

The names load on first use, so that importing this package stays light. Its modules are private.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sftrun.data.pack import read_packs
    from sftrun.data.store import IGNORED, cache_folder, read_samples, to_sample
    from sftrun.data.tokens.tokenizer import load_tokenizer

_LATE = {
    "IGNORED": "sftrun.data.store",
    "cache_folder": "sftrun.data.store",
    "load_tokenizer": "sftrun.data.tokens.tokenizer",
    "read_packs": "sftrun.data.pack",
    "read_samples": "sftrun.data.store",
    "to_sample": "sftrun.data.store",
}


def __getattr__(name: str) -> Any:
    """Loads a public name on first use, because its module may import numpy or the recipe engine."""
    if name not in _LATE:
        raise AttributeError(f"module 'sftrun.data' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_LATE[name]), name)


__all__ = ["IGNORED", "cache_folder", "load_tokenizer", "read_packs", "read_samples", "to_sample"]
