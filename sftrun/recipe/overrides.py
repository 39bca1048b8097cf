"""Overrides of recipe keys: `--set train.epochs=1` and the variable `SFTRUN_SET__TRAIN__EPOCHS=1`."""

import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from sftrun import scrub
from sftrun.errors import Place, Problem, UserError
from sftrun.recipe.compose import LINE_BREAK, MAX_DEPTH, UNPRINTABLE, compose
from sftrun.recipe.document import Document, Node, Origin
from sftrun.recipe.merge import merge

PREFIX = "SFTRUN_SET__"


class Override(msgspec.Struct, frozen=True):
    """A value for one path of a recipe; `places` are the places of the keys of the path."""

    keys: list[str]
    places: list[Place]
    node: Node


def set_options(values: Mapping[str, Any]) -> str:
    """Returns the `--set` options that set keys to values, as they are typed in a shell."""
    return " ".join(f"--set {shlex.quote(f'{key}={value_text(value)}')}" for key, value in values.items())


def value_text(value: Any) -> str:
    """Returns a value as it is written in a recipe or in `--set`: text without quotes, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def parse_options(sets: Iterable[str]) -> tuple[list[Override], list[Problem]]:
    """Parses `--set KEY=VALUE` options."""
    parsed, problems = [], []
    for text in sets:
        name, equals, value = text.partition("=")
        keys = name.strip().split(".")
        where = Place(f"--set {text}", None, 7, len(text), f"--set {text}")
        if not equals or not all(keys) or len(keys) > MAX_DEPTH:
            hint = "write, for example, --set train.epochs=1"
            problems.append(Problem("an override must be KEY=VALUE", where, hint=hint))
        elif keys[0] == "extends":
            problems.append(Problem("extends can only be written in a recipe file", where))
        else:
            parsed.append(_override(keys, ".", "--set ", name, value))
    return parsed, problems


def environment_overrides(environment: Mapping[str, str]) -> list[str]:
    """Returns the variables that override keys, as `NAME=value`."""
    return [f"{name}={value}" for name, value in sorted(environment.items()) if name.upper().startswith(PREFIX)]


def parse_environment(environment: Mapping[str, str]) -> tuple[list[Override], list[Problem]]:
    """Parses the variables `SFTRUN_SET__A__B=value`; the case of keys does not matter."""
    parsed, problems = [], []
    for name, value in sorted(environment.items()):
        if not name.upper().startswith(PREFIX):
            continue
        keys = name[len(PREFIX) :].lower().split("__")
        if not all(keys) or keys[0] == "extends" or len(keys) > MAX_DEPTH:
            where = Place(f"{name}={value}", None, 1, len(name), f"{name}={value}")
            problems.append(
                Problem(
                    "this variable does not name a recipe key", where, hint=f"write, for example, {PREFIX}TRAIN__EPOCHS"
                )
            )
        else:
            parsed.append(_override(keys, "__", name[: len(PREFIX)], name[len(PREFIX) :], value))
    return parsed, problems


def _override(keys: list[str], separator: str, lead: str, name: str, value: str) -> Override:
    """Makes an override that was written as `lead` + `name` + "=" + `value`."""
    prefix = f"{lead}{name}="
    if scrub.is_secret_name(keys[-1]) and "${env:" not in value:
        scrub.hide_literal(value)
    origin = Origin(prefix + value, Path.cwd(), LINE_BREAK.split(value), prefix)
    places, column = [], len(lead) + 1 + len(name) - len(name.lstrip())
    for key in keys:
        places.append(Place(origin.name, None, column, len(key), prefix + origin.lines[0]))
        column += len(key) + len(separator)
    return Override(keys, places, _value(value, origin))


def _value(text: str, origin: Origin) -> Node:
    """Parses a value as YAML; text that is not YAML is taken literally. `raw` is the value of a text key."""
    place = origin.place(0, 0, max(len(origin.lines[0]), 1))
    try:
        node, problems = compose(text, origin)
    except UserError:
        return Node(text, place, origin)
    if node is None:
        return Node(None, place, origin, raw=text)
    if problems:
        return Node(text, place, origin)
    if isinstance(node.value, str):  # without quotes it is taken literally: `a # b` has no comment
        return node if node.raw is None else Node(text.strip(), place, origin, raw=text.strip())
    return msgspec.structs.replace(node, raw=text.strip())


def apply_overrides(
    document: Document, options: Iterable[str], environment: Mapping[str, str]
) -> tuple[Document, list[Problem]]:
    """Returns the document with the environment variables, and then the options, on top."""
    by_variable, wrong_variables = parse_environment(environment)
    by_option, wrong_options = parse_options(options)
    root, problems = document.root, wrong_variables + wrong_options
    for override in by_variable + by_option:
        text = override.node.origin.name
        if UNPRINTABLE.search(text):
            problems.append(Problem("an override must not contain control characters", Place(text)))
            continue
        try:
            root = _put(root, override, 0)
        except UserError as error:
            problems += error.problems
    return Document(root), problems


def _put(node: Node | None, override: Override, depth: int) -> Node:
    if depth == len(override.keys):
        return merge(node, override.node) if node else override.node
    key, place = override.keys[depth], override.places[depth]
    if key.isdecimal() and (node is None or isinstance(node.value, list)):
        return _put_item(node, int(key), override, depth)
    old = node.child(key) if node else None
    new = _put(old, override, depth + 1)
    if node and old and not new.origin.is_override:  # the override only adds to this mapping
        place = node.keys.get(key, place)
    wrapped = Node({key: new}, place, override.node.origin, {key: place})
    return merge(node, wrapped) if node else wrapped


def _put_item(node: Node | None, index: int, override: Override, depth: int) -> Node:
    """Replaces an item of a list, or appends a new one."""
    items = list(node.value) if node else []
    if index > len(items):
        name = ".".join(override.keys[:depth])
        message = f"{name} has no item {index}: its length is {len(items)}"
        raise UserError(
            Problem(message, override.places[depth], hint=f"items are numbered from 0; {len(items)} appends one")
        )
    old = items[index] if index < len(items) else None
    items[index : index + 1] = [_put(old, override, depth + 1)]
    if node:
        return msgspec.structs.replace(node, value=items)
    return Node(items, override.places[depth], override.node.origin)
