"""Says what brings a package that is not installed."""

from collections.abc import Iterator
from importlib.util import find_spec

from sftrun.errors import Problem, RecipePath


def missing(*modules: str, path: RecipePath, why: str, extra: str = "") -> Iterator[Problem]:
    """A problem where modules are not installed; `extra` names the extra of sftrun that brings them."""
    absent = [module for module in modules if find_spec(module) is None]
    if absent:
        hint = f"pip install 'sftrun[{extra}]'" if extra else f"pip install {' '.join(absent)}"
        yield Problem(f"{why} needs {', '.join(absent)}: not installed", path=path, hint=hint)
