"""sftrun: supervised fine-tuning from a recipe. The names here are the public API, for users and plugins.

More for plugins: `sftrun.kinds` (what a component of each kind is given and returns), `sftrun.types` and
`sftrun.events`, `sftrun.files` (atomic folders, digests), `sftrun.strict_json` (the JSON of rows), `sftrun.hub` (the
Hugging Face Hub), `sftrun.data` (prepared data), `sftrun.training` (for backends on transformers) and
`sftrun.testing` (checks of components).
"""

__version__ = "0.1.0"

from typing import TYPE_CHECKING, Any

from sftrun.errors import Problem, RowError, UserError, missing_packages
from sftrun.hookspecs import Register, hookimpl
from sftrun.options import Meta, NameOrPath, Options, PathText, SecretText, Use, component
from sftrun.types import BadRow, Conversation, Grade, Measure, Message, Prompt, Row, Scores, Span

if TYPE_CHECKING:
    from sftrun import events, files, kinds  # noqa: F401  (public modules)
    from sftrun.flow import evaluate, prepare, resume, run
    from sftrun.recipe.model import Recipe
    from sftrun.recipe.validate import load, validate
    from sftrun.registry import create
    from sftrun.runs.directory import RunDir
    from sftrun.tools.generate import generate
    from sftrun.tools.inspect import inspect
    from sftrun.tools.plan import plan
    from sftrun.tools.rehearse import rehearse

_LATE = {
    "Recipe": "sftrun.recipe.model",
    "RunDir": "sftrun.runs.directory",
    "create": "sftrun.registry",
    "evaluate": "sftrun.flow",
    "generate": "sftrun.tools.generate",
    "gpu_count": "sftrun.gpus",
    "inspect": "sftrun.tools.inspect",
    "load": "sftrun.recipe.validate",
    "plan": "sftrun.tools.plan",
    "prepare": "sftrun.flow",
    "rehearse": "sftrun.tools.rehearse",
    "resume": "sftrun.flow",
    "run": "sftrun.flow",
    "validate": "sftrun.recipe.validate",
}
_LATE_MODULES = {"events", "files", "kinds"}


def __getattr__(name: str) -> Any:
    """Loads on first use what takes time, so that a plugin's `import sftrun` and `sftrun --help` stay instant."""
    import importlib

    if name in _LATE_MODULES:
        return importlib.import_module(f"sftrun.{name}")
    if name not in _LATE:
        raise AttributeError(f"module 'sftrun' has no attribute '{name}'")
    return getattr(importlib.import_module(_LATE[name]), name)


__all__ = [
    "BadRow",
    "Conversation",
    "Grade",
    "Measure",
    "Message",
    "Meta",
    "NameOrPath",
    "Options",
    "PathText",
    "Problem",
    "Prompt",
    "Recipe",
    "Register",
    "Row",
    "RowError",
    "RunDir",
    "Scores",
    "SecretText",
    "Span",
    "Use",
    "UserError",
    "component",
    "create",
    "evaluate",
    "generate",
    "gpu_count",
    "hookimpl",
    "inspect",
    "load",
    "missing_packages",
    "plan",
    "prepare",
    "rehearse",
    "resume",
    "run",
    "validate",
]
