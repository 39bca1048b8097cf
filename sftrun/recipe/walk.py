"""Goes through a document side by side with its schema, into the options of every component."""

from collections.abc import Iterator
from typing import Any

import msgspec

from sftrun.errors import RecipePath
from sftrun.options import Use
from sftrun.recipe.document import Node
from sftrun.registry import Registry

Schema = dict[str, Any]


class Visit(msgspec.Struct, frozen=True):
    """A node, where it stands, the schemas it may meet (one of them), and the kind of component it names."""

    path: RecipePath
    node: Node
    choices: list[Schema]
    kind: str | None = None

    def named(self) -> str | None:
        """The name of the component that stands here, as far as it can be told."""
        value = self.node.value
        if isinstance(value, dict):
            value = value["use"].value if "use" in value else None
        return value if self.kind and isinstance(value, str) else None

    def use(self) -> Use | None:
        """The component that stands here, where its outer shape is right."""
        name, given = self.named(), self.node.child("with")
        if name is None or (given and not isinstance(given.value, dict)):
            return None
        return Use(use=name, with_=given.plain() if given else {})

    def formats(self) -> set[str]:
        """The formats that text may have here: path, name-or-path, secret."""
        return {choice["format"] for choice in self.choices if "format" in choice}

    def types(self) -> set[str]:
        """The JSON types that are allowed here."""
        return {name for choice in self.choices for name in types(choice)}


def types(schema: Schema) -> set[str]:
    """The JSON types that one schema without alternatives allows; empty where it says nothing."""
    if "type" in schema:
        said = schema["type"]
        return {said} if isinstance(said, str) else set(said)
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return {json_type(value) for value in values}


def json_type(value: Any) -> str:
    """The JSON type of a value."""
    if isinstance(value, bool):  # before int, which it also is
        return "boolean"
    names = ((str, "string"), (int, "integer"), (float, "number"), (dict, "object"), (list, "array"))
    return next((name for kind, name in names if isinstance(value, kind)), "null")


def alternatives(schema: Schema) -> list[Schema]:
    """A schema as a list of those without anyOf, one of which has to be met."""
    options = schema.get("anyOf") or schema.get("oneOf")
    if not options:
        return [schema]
    return [flat for option in options for flat in alternatives(option)]


def kind_of(schema: Schema) -> str | None:
    """The kind of component that a schema asks for."""
    if "x-component" in schema:
        return str(schema["x-component"])
    inner = schema.get("anyOf", []) + ([schema["items"]] if isinstance(schema.get("items"), dict) else [])
    return next(filter(None, map(kind_of, inner)), None)


def walk(node: Node, schema: Schema, registry: Registry, path: RecipePath = ()) -> Iterator[Visit]:
    """Every node that the schema has a word on, parents first."""
    return _walk(node, alternatives(schema), None, registry, path)


def _walk(node: Node, choices: list[Schema], kind: str | None, registry: Registry, path: RecipePath) -> Iterator[Visit]:
    is_list = isinstance(node.value, list)
    here = None if is_list or all(types(choice) == {"array"} for choice in choices) else kind
    visit = Visit(path, node, choices, here)
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
    item = registry.components[str(visit.kind)].get(visit.named() or "")
    return [item.schema()] if item else []


def _property(choices: list[Schema], key: str) -> list[Schema]:
    found = [choice["properties"][key] for choice in choices if key in choice.get("properties", {})]
    if found:
        return found
    rest = (choice.get("additionalProperties") for choice in choices)
    return [schema for schema in rest if isinstance(schema, dict)]
