"""The complete recipe as text, every default written out, and back: what passes between processes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from sftrun.errors import UserError
from sftrun.recipe.compose import LINE_BREAK, UNPRINTABLE, compose, scalar
from sftrun.recipe.document import Origin
from sftrun.recipe.model import Recipe, typed_recipe

PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")


def resolved_yaml(recipe: Recipe) -> str:
    """A recipe as YAML with every default; `${env:NAME}` stays as it is."""
    data = msgspec.to_builtins(recipe)
    del data["extends"]
    if data["train"]["batch_size"] == "auto":  # which chooses it
        del data["train"]["grad_accum"]
    return "\n".join(_lines(data, "")) + "\n"


def from_resolved(text: str) -> Recipe:
    """The recipe that `resolved_yaml` wrote; raises UserError for any other text."""
    node, problems = compose(text, Origin("resolved.yaml", Path(), LINE_BREAK.split(text)))
    if problems or node is None:
        raise UserError(problems or "resolved.yaml is empty")
    return typed_recipe(node.plain())


def _lines(data: dict[str, Any], indent: str) -> Iterator[str]:
    for key, value in data.items():
        name = _text(key)
        if isinstance(value, dict) and value:
            yield f"{indent}{name}:"
            yield from _lines(value, indent + "  ")
        elif isinstance(value, list) and value:
            yield f"{indent}{name}:"
            yield from _items(value, indent + "  ")
        else:
            yield f"{indent}{name}: {_scalar(value)}"


def _items(items: list[Any], indent: str) -> Iterator[str]:
    for item in items:
        if isinstance(item, dict) and item:
            first, *rest = _lines(item, indent + "  ")
            yield f"{indent}- {first[len(indent) + 2 :]}"
            yield from rest
        elif isinstance(item, list) and item:
            first, *rest = _items(item, indent + "  ")
            yield f"{indent}- {first[len(indent) + 2 :]}"
            yield from rest
        else:
            yield f"{indent}- {_scalar(item)}"


def _scalar(value: Any) -> str:
    return _text(value) if isinstance(value, str) else json.dumps(value)


def _text(value: str) -> str:
    """Text in double quotes, as in JSON, unless it can only be read as text."""
    if PLAIN.fullmatch(value) and scalar(value) == value:
        return value
    quoted = json.dumps(value, ensure_ascii=False)
    return re.sub("[\x7f\x85\u2028\u2029\ufeff]|" + UNPRINTABLE.pattern, _escaped, quoted)


def _escaped(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"
