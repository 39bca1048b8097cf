"""What the command line writes: without secrets, and without commands to the terminal that come from outside."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sftrun import scrub

if TYPE_CHECKING:
    from rich.console import Console


class Guarded(scrub.Hiding):
    """A text stream that hides secrets, and writes control characters as `\\u001b`."""

    def shown(self, text: str) -> str:
        """Returns what is written for a text; a carriage return may begin it, as in the bars of libraries."""
        start = "\r" if text.startswith("\r") else ""
        return start + scrub.printable(super().shown(text[len(start) :]))


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """A context in which nothing reaches standard output or standard error unguarded.

    Data for programs on standard output keep their control characters, except in a terminal.
    """
    out, err = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (Guarded if out.isatty() else scrub.Hiding)(out), Guarded(err)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, err


def console() -> "Console":
    """Returns a rich console on standard error; every text that comes from outside must be `printable`."""
    from rich.console import Console

    raw = sys.stderr.stream if isinstance(sys.stderr, Guarded) else sys.stderr
    return Console(file=scrub.Hiding(raw), highlight=False)  # type: ignore[arg-type]
