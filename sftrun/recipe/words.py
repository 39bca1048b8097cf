"""Plain English for values and for what a schema allows."""

from collections.abc import Sequence
from typing import Any

from sftrun.errors import RecipePath
from sftrun.recipe.walk import Schema, types

LONGEST = 60
TYPES = {
    "null": "null",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "array": "a list",
    "object": "a mapping",
}


def name(path: RecipePath) -> str:
    """A path as it is written in `--set`."""
    return ".".join(map(str, path)) or "the recipe"


def value(given: Any) -> str:
    """A value as a message names it."""
    if given is None:
        return "null"
    if isinstance(given, bool):
        return "true" if given else "false"
    if isinstance(given, str):
        return f"the string {cut(given)}"
    if isinstance(given, int | float):
        return f"the number {given}"
    return "a list" if isinstance(given, list) else "a mapping"


def bare(given: Any) -> str:
    """A value as the file has it."""
    return cut(given) if isinstance(given, str) else value(given).removeprefix("the number ")


def cut(text: str) -> str:
    """Text in quotes, cut where it is long."""
    return repr(text if len(text) <= LONGEST else text[:LONGEST] + "…")


def wanted(choices: Sequence[Schema], kind: str | None) -> str:
    """What a place may hold, as in "must be …"."""
    if kind:
        nullable = " or null" if any("null" in types(choice) for choice in choices) else ""
        return f"the name of {a(kind)}, or a mapping with 'use' and 'with'{nullable}"
    said = dict.fromkeys(phrase for choice in choices for phrase in _phrases(choice))
    if "null" in said:  # last, it reads better
        del said["null"]
        said["null"] = None
    return listed(list(said))


def _phrases(choice: Schema) -> list[str]:
    values = choice.get("enum", [choice["const"]] if "const" in choice else None)
    if values is not None:
        return [v if isinstance(v, str) else value(v).removeprefix("the number ") for v in values]
    return [TYPES[name] for name in types(choice)] or ["something else"]


def a(kind: str) -> str:
    """A kind with its article."""
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


def listed(words: Sequence[str]) -> str:
    """`a`, `a or b`, `one of a, b, c`."""
    if len(words) <= 2:
        return " or ".join(words)
    return "one of " + ", ".join(words)
