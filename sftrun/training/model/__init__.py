"""Base models and adapters: loading, quantising, merging, and faster heads and attention.

For backends and exporters on transformers, in a worker process (each name imports torch on first use):

- `load_base(recipe, …)`: the model before training; `load_tuned(recipe, run)`: the one after, an adapter on its base.
- `merge_adapter(recipe, run, max_difference)`: the tuned model with its adapter merged, outputs compared.
- `outputs(model, rows)`, `compare_log_probabilities(before, after)` and `check_difference(facts, bound, hint)`:
  compare any two models on rows of token ids (`sample_rows(run)`).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sftrun.training.model.load import load_base, load_tuned
    from sftrun.training.model.merge import (
        check_difference,
        compare_log_probabilities,
        merge_adapter,
        outputs,
        sample_rows,
    )

__all__ = [
    "check_difference",
    "compare_log_probabilities",
    "load_base",
    "load_tuned",
    "merge_adapter",
    "outputs",
    "sample_rows",
]

_LOAD = ("load_base", "load_tuned")


def __getattr__(name: str) -> Any:
    """Returns a function on first use, so that importing a module next to it stays light."""
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{'load' if name in _LOAD else 'merge'}"), name)
