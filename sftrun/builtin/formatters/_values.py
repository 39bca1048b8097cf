"""Values: describes them in error messages, and checks values of tools and tool calls."""

import json
import math
from typing import Any

import sftrun
from sftrun import strict_json

DEEPEST = 64  # levels of nesting; no schema or argument is deeper, and recursion could overflow the stack
KINDS = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}


def describe_type(value: Any) -> str:
    """Describes a value by its type for a message: `a list`, `the number 4`."""
    if type(value) in KINDS:
        return KINDS[type(value)]
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**18):
        return f"the number {value}"
    return "a large number" if isinstance(value, int) else type(value).__name__


def quote_value(value: Any) -> str:
    """Quotes a text, shortened; describes any other value by its type."""
    if not isinstance(value, str):
        return describe_type(value)
    return repr(value if len(value) <= 40 else f"{value[:40]}…")


def parse_json(text: str, where: str) -> Any:
    """Parses a JSON text; raises RowError if it is invalid."""
    try:
        value = strict_json.decode(text.encode())
    except strict_json.NotJsonError as error:
        raise sftrun.RowError(f"{where} is not valid JSON: {str(error).removeprefix('not valid JSON: ')}") from None
    _check_depth(value, where, DEEPEST)
    return value


def write_json(value: Any) -> str:
    """Writes a value as JSON text, as chat templates do."""
    return json.dumps(value, ensure_ascii=False)


def remove_nulls(value: Any, where: str, deepest: int = DEEPEST) -> Any:
    """Copies a value without keys that are null; items of lists stay. Raises RowError for values that JSON lacks.

    Arrow gives every object of a column the keys of all, with null for missing ones.
    """
    if deepest < 0:
        raise _make_depth_error(where)
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if item is not None}
        return {_check_key(key, where): remove_nulls(item, where, deepest - 1) for key, item in kept.items()}
    if isinstance(value, list):
        return [remove_nulls(item, where, deepest - 1) for item in value]
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise sftrun.RowError(f"{where} holds {describe_type(value)}, which JSON does not have")


def _check_key(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise sftrun.RowError(f"{where} has a key that is {describe_type(key)}; keys must be strings")
    return key


def _check_depth(value: Any, where: str, deepest: int) -> None:
    if deepest < 0:
        raise _make_depth_error(where)
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check_depth(item, where, deepest - 1)


def _make_depth_error(where: str) -> sftrun.RowError:
    return sftrun.RowError(f"{where} is nested more than {DEEPEST} deep")
