"""Errors as data: checks yield problems, and only the command line prints them."""

from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import Literal

import msgspec

RecipePath = tuple[str | int, ...]

EMPTY_ANSWER = "empty answer"
"""Reason of a RowError for a row without an answer to learn."""


class Place(msgspec.Struct, frozen=True):
    """The place of a problem: a file and, if known, its 1-based line and column.

    `text` is the source line, and `length` the number of characters that the caret underlines. An override has no
    line; its column counts in the text of the override.
    """

    file: str
    line: int | None = None
    column: int | None = None
    length: int = 1
    text: str | None = None

    def __str__(self) -> str:
        if self.line is None:
            return self.file
        return f"{self.file}:{self.line}" if self.column is None else f"{self.file}:{self.line}:{self.column}"


class Problem(msgspec.Struct, frozen=True):
    """One mistake: what is wrong, where, and what to do about it.

    A check that knows the recipe but not its file sets `path`, the keys that lead to the value. The caller that knows
    the file turns the path into a place.
    """

    message: str
    where: Place | None = None
    path: RecipePath | None = None
    hint: str | None = None
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        text = f"{self.where}: {self.severity}: {self.message}" if self.where else f"{self.severity}: {self.message}"
        return f"{text}; {self.hint}" if self.hint else text


class UserError(Exception):
    """An error that the user can fix; it is printed as one message without a traceback (exit code 1)."""

    def __init__(self, what: str | Problem | Iterable[Problem], hint: str | None = None) -> None:
        if isinstance(what, str):
            what = Problem(what, hint=hint)
        self.problems: tuple[Problem, ...] = (what,) if isinstance(what, Problem) else tuple(what)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class OutOfMemory(UserError):  # noqa: N818 (torch has an OutOfMemoryError)
    """A worker process ran out of memory; its parent can start another one with a smaller micro-batch."""


class Interrupted(KeyboardInterrupt):
    """A run that a signal ended (exit code 130); the message says how to resume it."""


class RowError(ValueError):
    """A row or a conversation that cannot be used; the caller that knows its origin adds it to the message.

    The ledger counts such rows by `reason`.
    """

    def __init__(self, message: str, reason: str = "bad row") -> None:
        super().__init__(message)
        self.reason = reason


def missing_packages(*modules: str, path: RecipePath, why: str, extra: str = "") -> Iterator[Problem]:
    """Yields a problem if a module is not installed; `extra` is the extra of sftrun that installs the modules."""
    absent = [module for module in modules if find_spec(module) is None]
    if absent:
        hint = f"pip install 'sftrun[{extra}]'" if extra else f"pip install {' '.join(absent)}"
        yield Problem(f"{why} needs {', '.join(absent)}: not installed", path=path, hint=hint)
