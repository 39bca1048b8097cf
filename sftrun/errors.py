"""What can go wrong, as data: checks yield problems, only the command line prints them."""

from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import Literal

import msgspec

RecipePath = tuple[str | int, ...]


class Place(msgspec.Struct, frozen=True):
    """Where a problem is: a file, and when known its 1-based line and column.

    `text` is the source line and `length` the number of characters that the caret underlines. An override has no
    line: its column counts in its own text.
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
    """One thing that is wrong: what, where, and what to do about it.

    A check that knows the recipe but not its file gives `path`, the keys that lead to the value;
    whoever has the file turns it into a place.
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
    """Something that the user can fix, said in one message without a traceback (exit code 1)."""

    def __init__(self, what: str | Problem | Iterable[Problem], hint: str | None = None) -> None:
        if isinstance(what, str):
            what = Problem(what, hint=hint)
        self.problems: tuple[Problem, ...] = (what,) if isinstance(what, Problem) else tuple(what)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class OutOfMemory(UserError):  # noqa: N818 (torch has an OutOfMemoryError)
    """A worker process whose memory ran out, so that its parent can give the next one less to hold at once."""


class Interrupted(KeyboardInterrupt):
    """A run that a signal ended (exit code 130); the text says how to go on."""


class RowError(ValueError):
    """A row or a conversation that cannot be used; whoever knows its origin adds it."""


def missing_packages(*modules: str, path: RecipePath, why: str, extra: str = "") -> Iterator[Problem]:
    """Yields a problem if any of the modules is not installed; `extra` names the extra of sftrun that brings them."""
    absent = [module for module in modules if find_spec(module) is None]
    if absent:
        hint = f"pip install 'sftrun[{extra}]'" if extra else f"pip install {' '.join(absent)}"
        yield Problem(f"{why} needs {', '.join(absent)}: not installed", path=path, hint=hint)
