"""Walks a document together with its schema, into the options of every component."""

from collections.abc import Iterator
from typing import Any

import msgspec

from sftrun.errors import RecipePath
from sftrun.options import Use
from sftrun.recipe.document import Node
from sftrun.registry import Registry

Schema = dict[str, Any]


class Visit(msgspec.Struct, frozen=True):
    """A node with its path, the schemas of which it must match one, and the kind of component that it names."""

    path: RecipePath
    node: Node
    choices: list[Schema]
    kind: str | None = None

    def component_name(self) -> str | None:
        """Returns the name of the component at this node; None if the node names none."""
        value = self.node.value
        if isinstance(value, dict):
            value = value["use"].value if "use" in value else None
        return value if self.kind and isinstance(value, str) else None

    def use(self) -> Use | None:
        """Returns the component at this node; None if it has no name or its options are not a mapping."""
        name, given = self.component_name(), self.node.child("with")
        if name is None or (given and not isinstance(given.value, dict)):
            return None
        return Use(use=name, with_=given.plain() if given else {})

    def formats(self) -> set[str]:
        """Returns the formats that the schema gives to text at this node: path, name-or-path, secret."""
        return {choice["format"] for choice in self.choices if "format" in choice}

    def types(self) -> set[str]:
        """Returns the JSON types that the schema allows at this node."""
        return {name for choice in self.choices for name in schema_types(choice)}


def schema_types(schema: Schema) -> set[str]:
    """Returns the JSON types that a schema without alternatives allows; empty if it does not restrict them."""
    if "type" in schema:
        declared = schema["type"]
        return {declared} if isinstance(declared, str) else set(declared)
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return {json_type(value) for value in values}


def json_type(value: Any) -> str:
    """Returns the JSON type of a value."""
    if isinstance(value, bool):  # before int: bool is a subclass of int
        return "boolean"
    names = ((str, "string"), (int, "integer"), (float, "number"), (dict, "object"), (list, "array"))
    return next((name for kind, name in names if isinstance(value, kind)), "null")


def alternatives(schema: Schema) -> list[Schema]:
    """Returns the alternatives of a schema, each without anyOf; a value must match one of them."""
    options = schema.get("anyOf") or schema.get("oneOf")
    if not options:
        return [schema]
    return [flat for option in options for flat in alternatives(option)]


def kind_of(schema: Schema) -> str | None:
    """Returns the kind of component that a schema asks for; None if it asks for none."""
    if "x-component" in schema:
        return str(schema["x-component"])
    inner = schema.get("anyOf", []) + ([schema["items"]] if isinstance(schema.get("items"), dict) else [])
    return next(filter(None, map(kind_of, inner)), None)


def walk(node: Node, schema: Schema, registry: Registry, path: RecipePath = ()) -> Iterator[Visit]:
    """Yields every node that the schema describes, parents first."""
    return _walk(node, alternatives(schema), None, registry, path)


def _walk(node: Node, choices: list[Schema], kind: str | None, registry: Registry, path: RecipePath) -> Iterator[Visit]:
    is_list = isinstance(node.value, list)
    own_kind = None if is_list or all(schema_types(choice) == {"array"} for choice in choices) else kind
    visit = Visit(path, node, choices, own_kind)
    yield visit
    if is_list:
        items = [choice["items"] for choice in choices if isinstance(choice.get("items"), dict)]
        flat = [option for item in items for option in alternatives(item)]
        inner = kind or next(filter(None, map(kind_of, items)), None)
        for index, item in enumerate(node.value):
            yield from _walk(item, flat, inner, registry, (*path, index))
    elif isinstance(node.value, dict):
        for key, child in node.value.items():
            schemas = _options(visit, registry) if visit.kind and key == "with" else _property(choices, key)
            flat = [option for schema in schemas for option in alternatives(schema)]
            inner = next(filter(None, map(kind_of, schemas)), None)
            yield from _walk(child, flat, inner, registry, (*path, key))


def _options(visit: Visit, registry: Registry) -> list[Schema]:
    item = registry.components[str(visit.kind)].get(visit.component_name() or "")
    return [item.schema()] if item else []


def _property(choices: list[Schema], key: str) -> list[Schema]:
    declared = [choice["properties"][key] for choice in choices if key in choice.get("properties", {})]
    if declared:
        return declared
    others = (choice.get("additionalProperties") for choice in choices)
    return [schema for schema in others if isinstance(schema, dict)]
