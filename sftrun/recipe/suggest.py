"""Hints for wrong keys and values: what was probably meant."""

import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from sftrun.errors import RecipePath
from sftrun.options import schema
from sftrun.recipe import words
from sftrun.recipe.model import Recipe
from sftrun.recipe.walk import Schema, alternatives, kind_of

CLOSE_ELSEWHERE = 0.8  # similarity to a key of another level; for keys of the same level difflib's 0.6 is enough
FEW = 8  # keys; no more are listed if none is similar
NUMBER = re.compile(r"[-+]?[0-9][0-9_,]*(\.[0-9]+)?([eE][-+]?[0-9]+)?")
WORD = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
TRUTH = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}


def key_hint(wrong: str, path: RecipePath, known: Iterable[str]) -> str | None:
    """Returns a hint for an unknown key at `path`; the schema has the keys `known` there."""
    root, known = schema(Recipe), list(known)
    elsewhere = _paths_of(wrong, path, root)
    if len(elsewhere) == 1:
        return _elsewhere_hint(wrong, elsewhere[0])
    close = difflib.get_close_matches(wrong, known, n=1)
    if close:
        return f"did you mean '{close[0]}'?"
    names = {str(other[-1]) for other in _key_paths(root)}
    close = difflib.get_close_matches(wrong, names - {"use", "with"}, n=1, cutoff=CLOSE_ELSEWHERE)
    elsewhere = _paths_of(close[0], path, root) if close else []
    if len(elsewhere) == 1:
        return f"did you mean {words.dotted(elsewhere[0])}?"
    if not known and path[-1:] == ("with",):
        return "this component has no options"
    return f"the known keys are {', '.join(known)}" if 0 < len(known) <= FEW else None


def _elsewhere_hint(wrong: str, path: RecipePath) -> str:
    if len(path) == 1:
        return f"'{wrong}' belongs at the top level of a recipe"
    return f"did you mean {words.dotted(path)}?"


def _paths_of(name: str, parent: RecipePath, root: Schema) -> list[RecipePath]:
    return [path for path in _key_paths(root) if path[-1] == name and path[:-1] != parent]


def _key_paths(schema: Schema, path: RecipePath = ()) -> Iterator[RecipePath]:
    """Yields the path of every key of the recipe itself, without the options of components."""
    for choice in alternatives(schema):
        for name, inner in choice.get("properties", {}).items():
            yield (*path, name)
            if kind_of(inner) is None:
                yield from _key_paths(inner, (*path, name))


def type_hint(given: Any, allowed: set[str], *, quoted: bool) -> str | None:
    """Returns a hint for a value of the wrong type."""
    if given is None and allowed & {"object", "array"}:
        return "remove the key, or write something under it"
    if not isinstance(given, str):
        return "put it in quotes" if "string" in allowed and isinstance(given, int | float) else None
    if "boolean" in allowed and given.lower() in TRUTH:
        return f"write {TRUTH[given.lower()]}: in YAML 1.2, {given} is text"
    if allowed & {"number", "integer"} and NUMBER.fullmatch(given):
        plain = given.replace("_", "").replace(",", "")
        return f"write it without quotes: {plain}" if quoted and plain == given else f"write {plain}"
    if "null" in allowed and given.lower() == "none":
        return "write null"
    return f"write [{given}]" if allowed == {"array"} and WORD.fullmatch(given) else None


def choice_hint(given: Any, values: Iterable[Any]) -> str | None:
    """Returns a hint for a value that is not one of the allowed values."""
    texts = [value for value in values if isinstance(value, str)]
    if not isinstance(given, str):
        text = str(given).lower() if isinstance(given, bool) else str(given)
        return "put it in quotes" if text in texts else None
    close = difflib.get_close_matches(given, texts, n=1) or [text for text in texts if text.lower() == given.lower()]
    return f"did you mean '{close[0]}'?" if close else None
