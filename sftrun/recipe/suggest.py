"""What a wrong key or value was probably meant to be."""

import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from sftrun.errors import RecipePath
from sftrun.options import schema
from sftrun.recipe import words
from sftrun.recipe.model import Recipe
from sftrun.recipe.walk import Schema, alternatives, kind_of

SURE = 0.8  # a key of another level has to be this alike; beside it the usual 0.6 will do
FEW = 8  # keys that are listed where nothing is close
NUMBER = re.compile(r"[-+]?[0-9][0-9_,]*(\.[0-9]+)?([eE][-+]?[0-9]+)?")
WORD = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
TRUTH = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}


def key(wrong: str, path: RecipePath, here: Iterable[str]) -> str | None:
    """A hint for an unknown key at `path`, where the keys `here` may stand."""
    whole, here = schema(Recipe), list(here)
    there = _places(wrong, path, whole)
    if len(there) == 1:
        return _elsewhere(wrong, there[0])
    close = difflib.get_close_matches(wrong, here, n=1)
    if close:
        return f"did you mean '{close[0]}'?"
    names = {str(found[-1]) for found in _keys(whole)}
    close = difflib.get_close_matches(wrong, names - {"use", "with"}, n=1, cutoff=SURE)
    there = _places(close[0], path, whole) if close else []
    if len(there) == 1:
        return f"did you mean {words.name(there[0])}?"
    if not here and path[-1:] == ("with",):
        return "this component has no options"
    return f"the known keys are {', '.join(here)}" if 0 < len(here) <= FEW else None


def _elsewhere(wrong: str, there: RecipePath) -> str:
    if len(there) == 1:
        return f"'{wrong}' belongs at the top level of a recipe"
    return f"did you mean {words.name(there)}?"


def _places(name: str, path: RecipePath, whole: Schema) -> list[RecipePath]:
    return [found for found in _keys(whole) if found[-1] == name and found[:-1] != path]


def _keys(schema: Schema, path: RecipePath = ()) -> Iterator[RecipePath]:
    """Every key of the recipe itself; those of components are known by their component only."""
    for choice in alternatives(schema):
        for name, inner in choice.get("properties", {}).items():
            yield (*path, name)
            if kind_of(inner) is None:
                yield from _keys(inner, (*path, name))


def value(given: Any, allowed: set[str], *, quoted: bool) -> str | None:
    """A hint for a value of the wrong type."""
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


def one_of(given: Any, values: Iterable[Any]) -> str | None:
    """A hint for a value that is not among those allowed."""
    texts = [value for value in values if isinstance(value, str)]
    if not isinstance(given, str):
        shown = "true" if given is True else "false" if given is False else str(given)
        return "put it in quotes" if shown in texts else None
    close = difflib.get_close_matches(given, texts, n=1) or [text for text in texts if text.lower() == given.lower()]
    return f"did you mean '{close[0]}'?" if close else None
