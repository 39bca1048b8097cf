"""Problems for people (on stderr, in colour on a terminal), for programs (JSON) and for GitHub's annotations."""

import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

from sftrun.errors import Place, Problem

WIDEST = 160  # a longer source line is cut around the caret
STYLES = {"error": "bold red", "warning": "bold yellow", "place": "bold", "caret": "bold red", "text": "", "dim": "dim"}

Piece = tuple[str, str]
"""A style of STYLES and a text."""


def problems(found: Iterable[Problem]) -> None:
    """Prints problems to stderr."""
    for problem in found:
        _write([*pieces(problem), ("text", "\n")])


def say(text: str) -> None:
    """Prints one line for people to stderr."""
    _write([("text", text + "\n")])


def text(problem: Problem) -> str:
    """A problem as it is printed without colours."""
    return "".join(piece for _, piece in pieces(problem))


def pieces(problem: Problem) -> Iterator[Piece]:
    """The lines of a problem: what is wrong, then the source line with a caret below."""
    if problem.where:
        yield "place", f"{_printable(str(problem.where))}: "
    yield problem.severity, f"{problem.severity}: "
    yield "text", _printable(problem.message)
    if problem.hint:
        yield "text", f"; {_printable(problem.hint)}"
    if problem.where and problem.where.text is not None and problem.where.column:
        yield from _source(problem.where)


def _source(where: Place) -> Iterator[Piece]:
    source, start, length = _window(where)
    gutter = f"{where.line:>5}" if where.line else " " * 5
    yield "dim", f"\n{gutter} | "
    yield "text", source.rstrip()
    yield "dim", f"\n{' ' * 5} | "
    yield "caret", " " * _width(source[:start]) + "^" * max(_width(source[start : start + length]), 1)


def _window(where: Place) -> tuple[str, int, int]:
    """The source line, cut where it is long, and the caret's start (0-based) and length in it."""
    source, start = _printable(where.text or ""), (where.column or 1) - 1
    if len(source) <= WIDEST:
        return source, start, where.length
    left = max(start - WIDEST // 2, 0)
    cut = source[left : left + WIDEST]
    return cut, start - left, min(where.length, len(cut) - (start - left))


def _printable(text: str) -> str:
    """Text that cannot steer a terminal."""
    return "".join(char if char.isprintable() else " " if char in "\t\n\r" else "�" for char in text)


def _width(text: str) -> int:
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _write(parts: list[Piece]) -> None:
    if not sys.stderr.isatty() or os.environ.get("NO_COLOR"):
        sys.stderr.write("".join(piece for _, piece in parts))
        return
    from rich.console import Console
    from rich.text import Text

    out = Text()
    for style, piece in parts:
        out.append(piece, STYLES[style])
    Console(stderr=True, highlight=False).print(out, end="", soft_wrap=True)


def as_data(problem: Problem) -> dict[str, Any]:
    """A problem as JSON has it."""
    where = problem.where or Place("")
    return {
        "severity": problem.severity,
        "message": problem.message,
        "hint": problem.hint,
        "file": where.file or None,
        "line": where.line,
        "column": where.column,
        "length": where.length if where.column else None,
        "path": list(problem.path) if problem.path is not None else None,
    }


def github(problem: Problem, file: str) -> str:
    """A problem of a recipe as a workflow command that annotates the file."""
    said = problem.message + (f"; {problem.hint}" if problem.hint else "")
    where = problem.where
    if where is None or where.line is None:  # an override, or a file that could not be read
        at = f"{where.file}: " if where else ""
        return f"::{problem.severity} file={_property(file)}::{_data(at + said)}"
    spot = {"file": where.file, "line": where.line}
    if where.column:
        spot |= {"col": where.column, "endColumn": where.column + where.length}
    return f"::{problem.severity} {','.join(f'{k}={_property(str(v))}' for k, v in spot.items())}::{_data(said)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
