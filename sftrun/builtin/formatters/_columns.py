"""Columns of a row, and small templates that name them."""

import difflib
import json
import math
import string
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import sftrun
from sftrun.builtin.formatters._values import kind


def given(data: dict[str, Any], column: str) -> Any:
    """The value of a column. Raises RowError, naming those there are, where it is missing."""
    if column in data:
        return data[column]
    there = [str(name) for name in data]
    close = difflib.get_close_matches(column, there, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    raise sftrun.RowError(f"has no column '{column}'; there are: {', '.join(there) or '(none)'}{hint}")


def text(data: dict[str, Any], column: str) -> str:
    """The text of a column that must have one."""
    value = given(data, column)
    if not isinstance(value, str):
        raise sftrun.RowError(f"{column} must be a string, not {kind(value)}")
    if not value.strip():
        raise sftrun.RowError(f"{column} is empty")
    return value


def text_or_none(data: dict[str, Any], column: str | None) -> str | None:
    """The text of a column that a row need not have; None where it is missing, null or empty."""
    value = data.get(column) if column is not None else None
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    return text(data, str(column))


class Fill(NamedTuple):
    """A text with {column} in places: pairs of a text and the column that follows it."""

    parts: list[tuple[str, str | None]]

    def columns(self) -> list[str]:
        """The columns that it names, in order."""
        return [name for _, name in self.parts if name is not None]

    def fill(self, data: dict[str, Any]) -> str:
        """The text with the values of a row. Raises RowError where one is missing, empty or no text or number."""
        return "".join(before + ("" if name is None else written(data, name)) for before, name in self.parts)

    def is_empty(self, data: dict[str, Any]) -> bool:
        """Whether it names columns, and the row has a value in none of them."""
        values = [given(data, name) for name in self.columns()]
        return bool(values) and all(value is None or (isinstance(value, str) and not value.strip()) for value in values)


def written(data: dict[str, Any], column: str) -> str:
    """A text as it is; a number or a boolean as JSON writes it."""
    value = given(data, column)
    if isinstance(value, float) and not math.isfinite(value):
        raise sftrun.RowError(f"{column} holds no number: {value}")
    if isinstance(value, int | float):
        return json.dumps(value)
    return text(data, column)


def template(source: str) -> Fill:
    """Reads a small template. Raises ValueError, with the reason, where it is none."""
    parts = []
    for before, name, form, conversion in string.Formatter().parse(source):
        if name is not None and (not name.strip() or form or conversion or not _is_plain(name)):
            raise ValueError(f"{{{name}}}: between braces stands the name of a column and nothing else")
        parts.append((before, name))
    return Fill(parts)


def problems(source: str, path: tuple[str | int, ...], known: Collection[str] = ()) -> Iterator[sftrun.Problem]:
    """What is wrong with a small template at `path` of the recipe; with `known`, it names each of these."""
    hint = "write {column} where its value is to stand, and {{ or }} for a brace"
    try:
        names = template(source).columns()
    except ValueError as error:
        yield sftrun.Problem(f"not a template of columns: {error}", path=path, hint=hint)
        return
    if known and {*names} != {*known}:
        wanted = " and ".join(f"{{{name}}}" for name in known)
        yield sftrun.Problem(f"{path[-1]} must name {wanted}, and no other", path=path)


def _is_plain(name: str) -> bool:
    return not any(mark in name for mark in ".[]{}")
