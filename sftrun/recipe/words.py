"""Phrases for error messages: paths, values, and the values that a schema allows."""

from collections.abc import Sequence
from typing import Any

from sftrun.errors import RecipePath
from sftrun.recipe.walk import Schema, schema_types

LONGEST = 60  # characters of a quoted value
TYPES = {
    "null": "null",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "array": "a list",
    "object": "a mapping",
}


def dotted(path: RecipePath) -> str:
    """Returns a path as it is written in `--set`."""
    return ".".join(map(str, path)) or "the recipe"


def with_type(given: Any) -> str:
    """Returns a value with its type: `the string '3'`, `a list`."""
    if given is None:
        return "null"
    if isinstance(given, bool):
        return "true" if given else "false"
    if isinstance(given, str):
        return f"the string {quoted(given)}"
    if isinstance(given, int | float):
        return f"the number {given}"
    return "a list" if isinstance(given, list) else "a mapping"


def without_type(given: Any) -> str:
    """Returns a value alone: `'3'`, `3`, `true`."""
    return quoted(given) if isinstance(given, str) else with_type(given).removeprefix("the number ")


def quoted(text: str) -> str:
    """Returns text in quotes, shortened if it is long."""
    return repr(text if len(text) <= LONGEST else text[:LONGEST] + "…")


def allowed_values(choices: Sequence[Schema], kind: str | None) -> str:
    """Returns the values that schemas allow, as in "must be …"."""
    if kind:
        nullable = " or null" if any("null" in schema_types(choice) for choice in choices) else ""
        return f"the name of {with_article(kind)}, or a mapping with 'use' and 'with'{nullable}"
    phrases = dict.fromkeys(phrase for choice in choices for phrase in _phrases(choice))
    if "null" in phrases:  # moved to the end
        del phrases["null"]
        phrases["null"] = None
    return _alternatives(list(phrases))


def _phrases(choice: Schema) -> list[str]:
    values = choice.get("enum", [choice["const"]] if "const" in choice else None)
    if values is not None:
        return [value if isinstance(value, str) else without_type(value) for value in values]
    return [TYPES[name] for name in schema_types(choice)] or ["something else"]


def with_article(kind: str) -> str:
    """Returns a kind of component with its article."""
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


def _alternatives(words: Sequence[str]) -> str:
    """Returns `a`, `a or b` or `one of a, b, c`."""
    if len(words) <= 2:
        return " or ".join(words)
    return "one of " + ", ".join(words)
