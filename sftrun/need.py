"""Says which extra brings a package that is not installed."""

from collections.abc import Iterator
from importlib.util import find_spec

from sftrun.errors import Problem, RecipePath


def missing(*modules: str, extra: str, path: RecipePath, why: str) -> Iterator[Problem]:
    """A problem for each module that is not installed."""
    for module in modules:
        if find_spec(module) is None:
            yield Problem(
                f"{why} needs {module}, which is not installed", path=path, hint=f"pip install 'sftrun[{extra}]'"
            )
