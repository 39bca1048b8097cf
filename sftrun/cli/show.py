"""Formats problems: for people (on stderr, in colour on a terminal), as JSON, and as GitHub annotations."""

import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

from sftrun import scrub
from sftrun.cli import output
from sftrun.errors import Place, Problem

WIDEST = 160  # characters of a source line; a longer one is cut around the caret
STYLES = {"error": "bold red", "warning": "bold yellow", "place": "bold", "caret": "bold red", "text": "", "dim": "dim"}

Piece = tuple[str, str]
"""A style of STYLES and a text."""


def print_problems(problems: Iterable[Problem]) -> None:
    """Prints problems to stderr."""
    for problem in problems:
        _write([*pieces(problem), ("text", "\n")])


def print_line(text: str) -> None:
    """Prints one line to stderr."""
    _write([("text", scrub.printable(text) + "\n")])


def text(problem: Problem) -> str:
    """Returns the printed form of a problem, without colours."""
    return "".join(piece for _, piece in pieces(problem))


def pieces(problem: Problem) -> Iterator[Piece]:
    """Yields the pieces of a problem: its message, then the source line with a caret below."""
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
    """Returns the source line, cut if it is long, and the start (0-based) and length of the caret in it."""
    source, start = _printable(where.text or ""), (where.column or 1) - 1
    if len(source) <= WIDEST:
        return source, start, where.length
    left = max(start - WIDEST // 2, 0)
    cut = source[left : left + WIDEST]
    return cut, start - left, min(where.length, len(cut) - (start - left))


def _printable(text: str) -> str:
    """Replaces characters that could control a terminal."""
    return "".join(char if char.isprintable() else " " if char in "\t\n\r" else "�" for char in text)


def _width(text: str) -> int:
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _write(parts: list[Piece]) -> None:
    if not sys.stderr.isatty() or os.environ.get("NO_COLOR"):
        sys.stderr.write("".join(piece for _, piece in parts))
        return
    from rich.text import Text

    out = Text()
    for style, piece in parts:
        out.append(scrub.hide(piece), STYLES[style])
    output.console().print(out, end="", soft_wrap=True)


def as_data(problem: Problem) -> dict[str, Any]:
    """Returns a problem as data for JSON."""
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


def as_annotation(problem: Problem, file: str) -> str:
    """Returns the GitHub workflow command that annotates a file with a problem of a recipe."""
    message = problem.message + (f"; {problem.hint}" if problem.hint else "")
    where = problem.where
    if where is None or where.line is None:  # an override, or a file that could not be read
        prefix = f"{where.file}: " if where else ""
        return f"::{problem.severity} file={_escape_property(file)}::{_escape_message(prefix + message)}"
    properties = {"file": where.file, "line": where.line}
    if where.column:
        properties |= {"col": where.column, "endColumn": where.column + where.length}
    pairs = ",".join(f"{name}={_escape_property(str(value))}" for name, value in properties.items())
    return f"::{problem.severity} {pairs}::{_escape_message(message)}"


def _escape_message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _escape_property(text: str) -> str:
    return _escape_message(text).replace(":", "%3A").replace(",", "%2C")
