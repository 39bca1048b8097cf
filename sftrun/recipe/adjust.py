"""Adjusts a document before it is validated: types overrides, makes paths absolute, checks `${env:NAME}`."""

import difflib
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from sftrun import scrub
from sftrun.errors import Place, Problem
from sftrun.options import ENV, is_path
from sftrun.recipe.compose import MAX_INTEGER
from sftrun.recipe.document import Document, Node
from sftrun.recipe.walk import Visit, alternatives

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def convert_scalars(document: Document, visits: Iterable[Visit]) -> Document:
    """Converts scalars to the types of the schema: `1e3` to an integer, an override's `1` to text for a text key."""
    for visit in visits:
        value = _converted(visit)
        if value is not visit.node.value:
            document = document.with_value(visit.path, value)
    return document


def _converted(visit: Visit) -> Any:
    value, allowed = visit.node.value, visit.types()
    if isinstance(value, float) and value.is_integer() and _takes_integers_alone(allowed):
        return int(value)
    if visit.node.origin.is_override and visit.node.raw is not None and "string" in allowed:
        return visit.node.raw if not _is_allowed(value, allowed) else value
    return value


def _takes_integers_alone(allowed: set[str]) -> bool:
    return "integer" in allowed and "number" not in allowed


def number_problems(visits: Iterable[Visit]) -> Iterator[Problem]:
    """Yields a problem for every `1e30` in place of an integer: `resolved.yaml` could not be read again."""
    for visit in visits:
        value = visit.node.value
        if isinstance(value, int) and abs(value) > MAX_INTEGER and _takes_integers_alone(visit.types()):
            yield Problem(f"{'.'.join(map(str, visit.path))}: this number is too large", visit.node.place)


def _is_allowed(value: Any, allowed: set[str]) -> bool:
    if isinstance(value, bool):
        return "boolean" in allowed
    if isinstance(value, int | float):
        return "number" in allowed or ("integer" in allowed and isinstance(value, int))
    return {type(None): "null", dict: "object", list: "array"}.get(type(value), "string") in allowed


def variable_problems(visits: Iterable[Visit]) -> Iterator[Problem]:
    """Yields a problem for every malformed or misplaced variable, and for every secret that is written out."""
    for visit in visits:
        value, formats = visit.node.value, visit.formats()
        if isinstance(value, dict):
            _hide_secrets(visit)
        if not isinstance(value, str):
            continue
        for variable in ENV.findall(value):
            scrub.use_variable(variable)
        name = ".".join(map(str, visit.path))
        if "secret" in formats and not ENV.fullmatch(value):
            hint = "write ${env:NAME}, and set the environment variable NAME where the recipe runs"
            # without the source line: the output may end up in a public log
            yield Problem(
                f"{name} is a secret and must not be written out", _without_value(visit.node.place), hint=hint
            )
        elif "${env:" in value and not formats & {"path", "secret"}:
            hint = "only paths and secrets can hold variables; to change another value from outside, use --set"
            yield Problem(f"${{env:…}} is not allowed in {name}", visit.node.place, hint=hint)
        elif "${env:" in ENV.sub("", value):
            yield Problem(f"{name} holds a malformed variable", visit.node.place, hint="write ${env:NAME}")


def _hide_secrets(visit: Visit) -> None:
    """Hides values that are written out where a secret belongs, also under a misspelled key."""
    known = {name: about for choice in visit.choices for name, about in choice.get("properties", {}).items()}
    secrets = [
        name for name, about in known.items() if any(each.get("format") == "secret" for each in alternatives(about))
    ]
    for key, node in visit.node.value.items():
        unknown = key not in known and (scrub.is_secret_name(key) or difflib.get_close_matches(key, secrets, n=1))
        if key in secrets or unknown:
            for text in _texts(node):
                for part in ENV.sub("\0", text).split("\0"):
                    scrub.hide_literal(part)


def _texts(node: Node) -> Iterator[str]:
    """Yields every text and number below a node, as it is written."""
    if isinstance(node.value, dict | list):
        for child in node.value.values() if isinstance(node.value, dict) else node.value:
            yield from _texts(child)
    elif node.raw or isinstance(node.value, str):
        yield node.raw or node.value


def _without_value(place: Place) -> Place:
    name = place.file.split("=", 1)[0] if place.line is None else place.file
    return msgspec.structs.replace(place, file=name, text=None)


def make_paths_absolute(document: Document, visits: Iterable[Visit]) -> Document:
    """Makes every path absolute, relative to the folder of the file that it is written in."""
    for visit in visits:
        value, formats = visit.node.value, visit.formats()
        if isinstance(value, str) and ("path" in formats or ("name-or-path" in formats and is_path(value))):
            document = document.with_value(visit.path, _absolute(visit.node))
    return document


def _absolute(node: Node) -> str:
    text = str(node.value)
    if not text or URL.match(text) or text.startswith("${env:"):
        return text
    return os.path.abspath(node.origin.folder / os.path.expanduser(text))
