"""Says what brings a package that is not installed."""

from collections.abc import Iterator
from importlib.util import find_spec

from sftrun.errors import Problem, RecipePath


def missing(*modules: str, path: RecipePath, why: str, extra: str = "") -> Iterator[Problem]:
    """A problem for each module that is not installed; `extra` names the extra of sftrun that brings it."""
    for module in modules:
        if find_spec(module) is None:
            hint = f"pip install 'sftrun[{extra}]'" if extra else f"pip install {module}"
            yield Problem(f"{why} needs {module}, which is not installed", path=path, hint=hint)
