"""Columns of a row, and templates that name them."""

import difflib
import json
import math
import string
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import sftrun
from sftrun.builtin.formatters._values import describe_type


def get_column(data: dict[str, Any], column: str) -> Any:
    """Returns the value of a column; raises RowError, naming the other columns, if it is missing."""
    if column in data:
        return data[column]
    names = [str(name) for name in data]
    close = difflib.get_close_matches(column, names, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    raise sftrun.RowError(f"has no column '{column}'; its columns: {', '.join(names) or '(none)'}{hint}")


def get_text(data: dict[str, Any], column: str) -> str:
    """Returns the text of a column that must have one."""
    value = get_column(data, column)
    if not isinstance(value, str):
        raise sftrun.RowError(f"{column} must be a string, not {describe_type(value)}")
    if not value.strip():
        raise sftrun.RowError(f"{column} is empty")
    return value


def get_answer(data: dict[str, Any], column: str) -> str:
    """Returns the text of a column that has an answer; raises RowError, counted as an empty answer, without one."""
    if is_empty(get_column(data, column)):
        raise make_empty_answer(column)
    return get_text(data, column)


def make_empty_answer(column: str) -> sftrun.RowError:
    """Makes the error for a row whose answer is empty; `column` names its columns."""
    return sftrun.RowError(f"{column} is empty; write a text, or remove the row", sftrun.errors.EMPTY_ANSWER)


def is_empty(value: Any) -> bool:
    """Returns True for null and for a text without a word."""
    return value is None or (isinstance(value, str) and not value.strip())


def get_optional_text(data: dict[str, Any], column: str | None) -> str | None:
    """Returns the text of an optional column; None if it is missing, null or empty."""
    value = data.get(column) if column is not None else None
    if is_empty(value):
        return None
    return get_text(data, str(column))


class ColumnTemplate(NamedTuple):
    """A text with {column} in places: pairs of a text and the column that follows it."""

    parts: list[tuple[str, str | None]]

    def list_columns(self) -> list[str]:
        """Returns the columns that the template names, in order."""
        return [name for _, name in self.parts if name is not None]

    def fill(self, data: dict[str, Any]) -> str:
        """Returns the text with a row's values; raises RowError if one is missing, empty or of another type."""
        return "".join(before + ("" if name is None else write_value(data, name)) for before, name in self.parts)

    def is_empty(self, data: dict[str, Any]) -> bool:
        """Returns True if the template names columns and every one of them is empty in the row."""
        values = [get_column(data, name) for name in self.list_columns()]
        return bool(values) and all(map(is_empty, values))


def write_value(data: dict[str, Any], column: str) -> str:
    """Returns a text as it is, and a number or a boolean as JSON writes it."""
    value = get_column(data, column)
    if isinstance(value, float) and not math.isfinite(value):
        raise sftrun.RowError(f"{column} holds no number: {value}")
    if isinstance(value, int | float):
        return json.dumps(value)
    return get_text(data, column)


def parse_template(source: str) -> ColumnTemplate:
    """Parses a template; raises ValueError, with the reason, if it is invalid."""
    parts = []
    for before, name, form, conversion in string.Formatter().parse(source):
        if name is not None and (not name.strip() or form or conversion or not _is_plain(name)):
            raise ValueError(f"{{{name}}}: braces must contain the name of a column and nothing else")
        parts.append((before, name))
    return ColumnTemplate(parts)


def check_template(source: str, path: tuple[str | int, ...], known: Collection[str] = ()) -> Iterator[sftrun.Problem]:
    """Yields problems of a template at `path` of the recipe; it must name every column of `known`, if any."""
    hint = "write {column} for the value of a column, and {{ or }} for a brace"
    try:
        names = parse_template(source).list_columns()
    except ValueError as error:
        yield sftrun.Problem(f"not a template of columns: {error}", path=path, hint=hint)
        return
    if known and {*names} != {*known}:
        wanted = " and ".join(f"{{{name}}}" for name in known)
        yield sftrun.Problem(f"{path[-1]} must name {wanted}, and no other column", path=path)


def _is_plain(name: str) -> bool:
    return not any(mark in name for mark in ".[]{}")
