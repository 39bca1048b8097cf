"""What values are called in messages to people, and what may stand in tools and their calls."""

import json
import math
from typing import Any

import msgspec

import sftrun

DEEPEST = 64  # what lies deeper is no schema and no argument, and could overrun the stack
KINDS = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}


def kind(value: Any) -> str:
    """What a value is, for a message: `a list`, `the number 4`."""
    if type(value) in KINDS:
        return KINDS[type(value)]
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**18):
        return f"the number {value}"
    return "a large number" if isinstance(value, int) else type(value).__name__


def shown(value: Any) -> str:
    """A text in quotes, shortened; of anything else, what it is."""
    if not isinstance(value, str):
        return kind(value)
    return repr(value if len(value) <= 40 else f"{value[:40]}…")


def from_json(text: str, where: str) -> Any:
    """The value of a JSON text. Raises RowError where it is none."""
    try:
        value = msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        raise sftrun.RowError(f"{where} is not valid JSON: {error}") from None
    _measure(value, where, DEEPEST)
    return value


def to_json(value: Any) -> str:
    """The JSON text of a value, written as chat templates write it."""
    return json.dumps(value, ensure_ascii=False)


def cleaned(value: Any, where: str, deepest: int = DEEPEST) -> Any:
    """A copy in which no key is null; items of lists stay. Raises RowError for what JSON does not have.

    Arrow gives all objects of a column the keys of all: what a row did not have comes as null.
    """
    if deepest < 0:
        raise _too_deep(where)
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if item is not None}
        return {_key(key, where): cleaned(item, where, deepest - 1) for key, item in kept.items()}
    if isinstance(value, list):
        return [cleaned(item, where, deepest - 1) for item in value]
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise sftrun.RowError(f"{where} holds {kind(value)}, which JSON does not have")


def _key(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise sftrun.RowError(f"{where} has a key that is {kind(key)}; keys must be strings")
    return key


def _measure(value: Any, where: str, deepest: int) -> None:
    if deepest < 0:
        raise _too_deep(where)
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _measure(item, where, deepest - 1)


def _too_deep(where: str) -> sftrun.RowError:
    return sftrun.RowError(f"{where} is nested more than {DEEPEST} deep")
