"""sftrun: supervised fine-tuning from a recipe. What stands here is the public API, for users and plugins."""

__version__ = "0.1.0"

from typing import TYPE_CHECKING, Any

from sftrun.errors import Interrupted, Place, Problem, RowError, UserError, missing_packages
from sftrun.files import atomic_folder, file_digest, is_disk_full, sync_to_disk
from sftrun.hookspecs import API_VERSION, Register, hookimpl
from sftrun.options import Meta, NameOrPath, Options, PathText, SecretText, Use, component
from sftrun.types import (
    Backend,
    BadRow,
    Context,
    Conversation,
    Emit,
    Evaluator,
    Exporter,
    Footprint,
    Formatter,
    Grade,
    Judge,
    LossSums,
    Masker,
    Message,
    Model,
    Note,
    Plans,
    Prompt,
    Row,
    Scores,
    Shape,
    Source,
    Span,
    Transform,
)

if TYPE_CHECKING:
    from sftrun.data.pack import read_packs
    from sftrun.data.store import IGNORED, cache_folder, read_samples, to_sample
    from sftrun.data.tokens.tokenizer import load_tokenizer
    from sftrun.flow import run
    from sftrun.hub import check_dataset
    from sftrun.launch.topology import gpus
    from sftrun.recipe.model import Recipe
    from sftrun.recipe.validate import load, validate
    from sftrun.registry import create
    from sftrun.runs.directory import RunDir

_LATE = {
    "Recipe": "sftrun.recipe.model",
    "load": "sftrun.recipe.validate",
    "validate": "sftrun.recipe.validate",
    "run": "sftrun.flow",
    "create": "sftrun.registry",
    "RunDir": "sftrun.runs.directory",
    "gpus": "sftrun.launch.topology",
    "load_tokenizer": "sftrun.data.tokens.tokenizer",
    "read_packs": "sftrun.data.pack",
    "read_samples": "sftrun.data.store",
    "to_sample": "sftrun.data.store",
    "IGNORED": "sftrun.data.store",
    "cache_folder": "sftrun.data.store",
    "check_dataset": "sftrun.hub",
}


def __getattr__(name: str) -> Any:
    """Loads what needs the recipe engine on first use, so that a plugin's `import sftrun` stays instant."""
    if name not in _LATE:
        raise AttributeError(f"module 'sftrun' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_LATE[name]), name)


__all__ = [
    "API_VERSION",
    "IGNORED",
    "Backend",
    "BadRow",
    "Context",
    "Conversation",
    "Emit",
    "Evaluator",
    "Exporter",
    "Footprint",
    "Formatter",
    "Grade",
    "Interrupted",
    "Judge",
    "LossSums",
    "Masker",
    "Message",
    "Meta",
    "Model",
    "NameOrPath",
    "Note",
    "Options",
    "PathText",
    "Place",
    "Plans",
    "Problem",
    "Prompt",
    "Recipe",
    "Register",
    "Row",
    "RowError",
    "RunDir",
    "Scores",
    "SecretText",
    "Shape",
    "Source",
    "Span",
    "Transform",
    "Use",
    "UserError",
    "__version__",
    "atomic_folder",
    "cache_folder",
    "check_dataset",
    "component",
    "create",
    "file_digest",
    "gpus",
    "hookimpl",
    "is_disk_full",
    "load",
    "load_tokenizer",
    "missing_packages",
    "read_packs",
    "read_samples",
    "run",
    "sync_to_disk",
    "to_sample",
    "validate",
]
