"""Prepared data, for plugins: where it is kept, and readers of what preparing has written."""

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
    """Loads numpy and pyarrow on first use."""
    if name not in _LATE:
        raise AttributeError(f"module 'sftrun.data' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_LATE[name]), name)


__all__ = ["IGNORED", "Samples", "load_tokenizer", "prompt_encoder", "read_packs"]
