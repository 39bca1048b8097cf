"""Turns the errors of a schema into problems: in plain English, with a place and, if possible, a hint."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jsonschema.exceptions import ValidationError
from jsonschema.validators import Draft202012Validator

from sftrun.errors import Problem, RecipePath
from sftrun.recipe import suggest, words
from sftrun.recipe.document import Document
from sftrun.recipe.walk import Schema, Visit, alternatives, json_type, schema_types
from sftrun.registry import Registry

LIMITS = {
    "minimum": "at least",
    "maximum": "at most",
    "exclusiveMinimum": "more than",
    "exclusiveMaximum": "less than",
}
SIZES = {
    "minLength": "at least {} characters long",
    "maxLength": "at most {} characters long",
    "minItems": "a list of at least {} items",
    "maxItems": "a list of at most {} items",
    "minProperties": "a mapping of at least {} keys",
    "maxProperties": "a mapping of at most {} keys",
}


class Diagnosis:
    """Validates parts of a document; `components` are the visits of its components by path.

    With `partial`, missing keys are not reported: a base recipe could not be read.
    """

    def __init__(
        self, document: Document, components: dict[RecipePath, Visit], registry: Registry, partial: bool
    ) -> None:
        self.document = document
        self.components = components
        self.registry = registry
        self.partial = partial

    def problems(self, data: Any, schema: Schema, path: RecipePath = ()) -> Iterator[Problem]:
        """Yields the problems of `data`, which is the value at `path`."""
        for error in Draft202012Validator(schema).iter_errors(data):
            yield from self._explain(error, path)

    def _explain(self, error: ValidationError, base: RecipePath) -> Iterator[Problem]:
        path = (*base, *error.absolute_path)
        keyword = str(error.validator)
        special: dict[str, Callable[[ValidationError, RecipePath], Iterable[Problem]]] = {
            "additionalProperties": self._unknown_keys,
            "required": self._missing_keys,
            "anyOf": self._no_alternative,
            "oneOf": self._no_alternative,
        }
        if keyword in special:
            yield from special[keyword](error, path)
        else:
            yield self._wrong_value(error, keyword, path)

    def _problem(self, path: RecipePath, message: str, hint: str | None = None) -> Problem:
        return Problem(message, self.document.place(path), path, hint)

    def _unknown_keys(self, error: ValidationError, path: RecipePath) -> Iterator[Problem]:
        known = error.schema.get("properties", {})
        for key in error.instance:
            if key not in known:
                place = self.document.key_place((*path, key))
                hint = self._option_hint(key, path) or suggest.key_hint(key, path, known)
                yield Problem(f"unknown key '{key}' in {words.dotted(path)}", place, (*path, key), hint)

    def _option_hint(self, key: str, path: RecipePath) -> str | None:
        """Returns a hint for an option that is written next to `with` instead of under it."""
        visit = self.components.get(path)
        item = self.registry.components[str(visit.kind)].get(visit.component_name() or "") if visit else None
        if item is None or key not in item.schema().get("properties", {}):
            return None
        return f"did you mean {words.dotted((*path, 'with', key))}? Options go under 'with'"

    def _missing_keys(self, error: ValidationError, path: RecipePath) -> Iterator[Problem]:
        component = self.document.find(path[:-1]) if path[-1:] == ("with",) else None
        for key in error.validator_value:
            misplaced = component is not None and component.child(key) is not None  # reported as an unknown key
            if key not in error.instance and not misplaced and not self.partial:
                message = f"missing key '{key}' in {words.dotted(path)}"
                hint = self._missing_key_hint(key, path, error.instance)
                yield Problem(message, self.document.key_place(path), path, hint)

    def _missing_key_hint(self, key: str, path: RecipePath, given: dict[str, Any]) -> str | None:
        """Returns a hint on how to write the missing key of a component."""
        visit = self.components.get(path if key == "use" else path[:-1])
        if visit is None:
            return None
        if key == "use":
            named = [name for name in given if name in self.registry.components[str(visit.kind)]]
            return (
                f"write use: {named[0]}"
                if named
                else f"write use: and the name of {words.with_article(str(visit.kind))}"
            )
        is_bare_name = isinstance(visit.node.value, str)
        return f"write {{use: {visit.component_name()}, with: {{{key}: …}}}}" if is_bare_name else None

    def _wrong_value(self, error: ValidationError, keyword: str, path: RecipePath) -> Problem:
        limit, given = error.validator_value, error.instance
        if keyword == "type":
            return self._wrong_type(path, given, [error.schema])
        if keyword in ("enum", "const"):
            return self._wrong_choice(path, given, [error.schema], [error.schema])
        if keyword in LIMITS:
            rule = f" must be {LIMITS[keyword]} {limit}, not {given}"
        elif keyword.startswith("min") and limit == 1:
            rule = " must not be empty"
        elif keyword in SIZES:
            rule = f" must be {SIZES[keyword].format(limit)}"
        elif keyword == "pattern":
            rule = f" must match {limit}, not {words.without_type(given)}"
        else:
            rule = f": {error.message}"
        return self._problem(path, words.dotted(path) + rule)

    def _wrong_type(self, path: RecipePath, given: Any, choices: list[Schema]) -> Problem:
        node = self.document.find(path)
        kind = self.components[path].kind if path in self.components else None
        allowed = {name for choice in choices for name in schema_types(choice)} if kind is None else set()
        hint = suggest.type_hint(given, allowed, quoted=node is not None and node.raw is None)
        message = f"{words.dotted(path)} must be {words.allowed_values(choices, kind)}, not {words.with_type(given)}"
        return self._problem(path, message, hint)

    def _no_alternative(self, error: ValidationError, path: RecipePath) -> Iterator[Problem]:
        """Yields the problems of the alternative that fits the type of the value, or else the allowed types."""
        choices = alternatives(error.schema)
        fitting = [choice for choice in choices if _fits(error.instance, choice)]
        if not fitting:
            yield self._wrong_type(path, error.instance, choices)
            return
        enums = [choice for choice in choices if "enum" in choice or "const" in choice]
        if all(choice in enums for choice in fitting) and not isinstance(error.instance, dict | list):
            yield self._wrong_choice(path, error.instance, choices, enums)
            return
        yield from min((list(self.problems(error.instance, choice, path)) for choice in fitting), key=len)

    def _wrong_choice(self, path: RecipePath, given: Any, choices: list[Schema], enums: list[Schema]) -> Problem:
        """Returns the problem of a value that only enums could allow, and none does."""
        values = [value for choice in enums for value in choice.get("enum", [choice.get("const")])]
        hint = suggest.choice_hint(given, values)
        if not hint and enums != choices:
            return self._wrong_type(path, given, choices)
        allowed = words.allowed_values(choices, None)
        return self._problem(path, f"{words.dotted(path)} must be {allowed}, not {words.without_type(given)}", hint)


def _fits(instance: Any, choice: Schema) -> bool:
    """Returns True if a value has the JSON type of an alternative and, in a tagged union, its tag."""
    own, allowed = json_type(instance), schema_types(choice)
    if own not in allowed and not (own == "integer" and "number" in allowed):
        return False
    if not isinstance(instance, dict):
        return True
    tags = {
        key: sub["const"] if "const" in sub else sub["enum"][0]
        for key, sub in choice.get("properties", {}).items()
        if "const" in sub or len(sub.get("enum", [])) == 1
    }
    return all(instance.get(key, tag) == tag for key, tag in tags.items())
