"""The complete schema of a recipe for editors, with the options of every component under its name.

Validation does not use it: it checks the recipe and each component separately. A test compares the two.
"""

from collections.abc import Iterable
from typing import Any

from sftrun.options import schema
from sftrun.recipe.model import Recipe
from sftrun.recipe.walk import Schema, alternatives, schema_types
from sftrun.registry import Registered, Registry

DIALECT = "https://json-schema.org/draft/2020-12/schema"
IDENTITY = "urn:sftrun:recipe"
COMMENT = "Written by `sftrun schema --builtin`; `sftrun schema` has the options of installed plugins too."


def recipe_schema(registry: Registry, only_builtin: bool = False) -> Schema:
    """Returns the schema of a recipe file; a recipe that extends another one may leave out required keys."""
    outer = schema(Recipe)
    components = {
        kind: [item for _, item in sorted(items.items()) if item.distribution == "sftrun" or not only_builtin]
        for kind, items in registry.components.items()
    }
    definitions: dict[str, Any] = {}
    for kind, items in components.items():
        definitions[kind] = _component(items)
        definitions[f"{kind}-complete"] = _complete_component(items)
    return {
        "$schema": DIALECT,
        "$id": IDENTITY,
        "$comment": COMMENT,
        **_loose(outer),
        "title": "sftrun recipe",
        "if": {"required": ["extends"], "properties": {"extends": {"type": "string"}}},
        "else": _requirements(outer),
        "$defs": definitions,
    }


def _component(items: Iterable[Registered]) -> Schema:
    """Returns the schema of a component: a bare name, or `use` and `with`, where `use` decides the type of `with`."""
    items = list(items)
    names = [{"const": item.name, "description": item.description} for item in items]
    options = [
        {
            "if": {"properties": {"use": {"const": item.name}}, "required": ["use"]},
            "then": {"properties": {"with": {**_loose(item.schema()), "description": f"Options of {item.name}."}}},
        }
        for item in items
    ]
    long_form: Schema = {
        "type": "object",
        "properties": {
            "use": {"description": "Name of the component.", "oneOf": names} if names else False,
            "with": {"description": "Options of the component.", "type": "object"},
        },
        "additionalProperties": False,
    }
    return {"anyOf": [*names, {**long_form, "allOf": options} if options else long_form]}


def _complete_component(items: Iterable[Registered]) -> Schema:
    """Returns what a component must have if there is no base recipe: a name, and the options without a default."""
    bare: Schema = {"type": "string"}
    long_form: Schema = {"type": "object", "required": ["use"]}
    options = []
    for item in items:
        needs = _requirements(item.schema())
        if needs:
            then: Schema = {"properties": {"with": needs}}
            if "required" in needs:
                then["required"] = ["with"]
                bare.setdefault("not", {"enum": []})["enum"].append(item.name)
            options.append({"if": {"properties": {"use": {"const": item.name}}}, "then": then})
    return {"anyOf": [bare, {**long_form, "allOf": options} if options else long_form]}


def _loose(node: Any) -> Any:
    """Returns a schema without `required`, with references to the schemas of components."""
    if isinstance(node, list):
        return [_loose(item) for item in node]
    if not isinstance(node, dict):
        return node
    if "x-component" in node:
        return _component_reference(node, str(node["x-component"]))
    return {
        key: _loose_properties(value) if key == "properties" else _loose(value)
        for key, value in node.items()
        if key != "required"
    }


def _loose_properties(properties: Schema) -> Schema:
    return {name: _loose(value) for name, value in properties.items()}


def _component_reference(node: Schema, kind: str, suffix: str = "") -> Schema:
    """Returns the schema of a key that names a component, or a list of them, as a reference to the component."""
    reference: Schema = {"$ref": f"#/$defs/{kind}{suffix}"}
    about: Schema = {key: node[key] for key in ("description", "default") if key in node and not suffix}
    choices = alternatives(node)
    if node.get("type") == "array":
        return {**about, "type": "array", "items": reference}
    lists = [choice for choice in choices if choice.get("type") == "array"]
    if any("null" in schema_types(choice) for choice in choices) or lists:
        others: list[Schema] = [{"type": "null"}] if any("null" in schema_types(choice) for choice in choices) else []
        others += [{"type": "array", "items": reference}] if lists else []
        return {**about, "anyOf": [reference, *others]}
    return {**about, **reference}


def _requirements(node: Schema) -> Schema:
    """Returns the requirements that `_loose` left out of an object; a complete recipe must meet them."""
    properties: Schema = {}
    for name, inner in node.get("properties", {}).items():
        if "x-component" in inner:
            properties[name] = _component_reference(inner, str(inner["x-component"]), "-complete")
        else:
            needs = [_requirements(choice) for choice in alternatives(inner) if choice.get("type") == "object"]
            if len(needs) == 1 and needs[0]:
                properties[name] = needs[0]
    requirements: Schema = {"properties": properties} if properties else {}
    if node.get("required"):
        requirements["required"] = node["required"]
    return requirements
