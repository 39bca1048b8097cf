"""A schema's errors as problems: plain English, with a place and, where it can be told, what would be right."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jsonschema.exceptions import ValidationError
from jsonschema.validators import Draft202012Validator

from sftrun.errors import Problem, RecipePath
from sftrun.recipe import suggest, words
from sftrun.recipe.document import Document
from sftrun.recipe.walk import Schema, Visit, alternatives, json_type, types
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
    """Validates parts of one document, in which `components` stand.

    Of a partial one, whose other part could not be read, it is not said that keys are missing.
    """

    def __init__(
        self, document: Document, components: dict[RecipePath, Visit], registry: Registry, partial: bool
    ) -> None:
        self.document = document
        self.components = components
        self.registry = registry
        self.partial = partial

    def problems(self, data: Any, schema: Schema, path: RecipePath = ()) -> Iterator[Problem]:
        """What is wrong with `data`, which stands at `path`."""
        for error in Draft202012Validator(schema).iter_errors(data):
            yield from self._explain(error, path)

    def _explain(self, error: ValidationError, base: RecipePath) -> Iterator[Problem]:
        path = (*base, *error.absolute_path)
        keyword = str(error.validator)
        special: dict[str, Callable[[ValidationError, RecipePath, RecipePath], Iterable[Problem]]] = {
            "additionalProperties": self._unknown_keys,
            "required": self._missing_keys,
            "anyOf": self._alternatives,
            "oneOf": self._alternatives,
        }
        if keyword in special:
            yield from special[keyword](error, path, base)
        else:
            yield self._wrong(error, keyword, path)

    def _at(self, path: RecipePath, message: str, hint: str | None = None) -> Problem:
        return Problem(message, self.document.place(path), path, hint)

    def _unknown_keys(self, error: ValidationError, path: RecipePath, base: RecipePath) -> Iterator[Problem]:
        known = error.schema.get("properties", {})
        for key in error.instance:
            if key not in known:
                place = self.document.key_place((*path, key))
                hint = self._option(key, path) or suggest.key(key, path, known)
                yield Problem(f"unknown key '{key}' in {words.name(path)}", place, (*path, key), hint)

    def _option(self, key: str, path: RecipePath) -> str | None:
        """A hint for an option that is written beside `with`."""
        visit = self.components.get(path)
        item = self.registry.components[str(visit.kind)].get(visit.named() or "") if visit else None
        if item is None or key not in item.schema().get("properties", {}):
            return None
        return f"did you mean {words.name((*path, 'with', key))}? Options go under 'with'"

    def _missing_keys(self, error: ValidationError, path: RecipePath, base: RecipePath) -> Iterator[Problem]:
        beside = self.document.find(path[:-1]) if path[-1:] == ("with",) else None
        for key in error.validator_value:
            misplaced = beside is not None and beside.child(key) is not None  # said already, as an unknown key
            if key not in error.instance and not misplaced and not self.partial:
                message = f"missing key '{key}' in {words.name(path)}"
                yield Problem(message, self.document.key_place(path), path, self._how(key, path, error.instance))

    def _how(self, key: str, path: RecipePath, given: dict[str, Any]) -> str | None:
        """A hint on how to write the missing key of a component."""
        visit = self.components.get(path if key == "use" else path[:-1])
        if visit is None:
            return None
        if key == "use":
            named = [name for name in given if name in self.registry.components[str(visit.kind)]]
            return f"write use: {named[0]}" if named else f"write use: and the name of {words.a(str(visit.kind))}"
        bare = isinstance(visit.node.value, str)
        return f"write {{use: {visit.named()}, with: {{{key}: …}}}}" if bare else None

    def _wrong(self, error: ValidationError, keyword: str, path: RecipePath) -> Problem:
        limit, given, name = error.validator_value, error.instance, words.name(path)
        if keyword == "type":
            return self._type(path, given, [error.schema])
        if keyword in ("enum", "const"):
            values = limit if keyword == "enum" else [limit]
            said = f"{name} must be {words.wanted([error.schema], None)}, not {words.bare(given)}"
            return self._at(path, said, suggest.one_of(given, values))
        if keyword in LIMITS:
            return self._at(path, f"{name} must be {LIMITS[keyword]} {limit}, not {given}")
        if keyword in SIZES:
            size = (
                "must not be empty"
                if limit == 1 and keyword.startswith("min")
                else f"must be {SIZES[keyword].format(limit)}"
            )
            return self._at(path, f"{name} {size}")
        if keyword == "pattern":
            return self._at(path, f"{name} must match {limit}, not {words.bare(given)}")
        return self._at(path, f"{name}: {error.message}")

    def _kind(self, path: RecipePath) -> str | None:
        return self.components[path].kind if path in self.components else None

    def _type(self, path: RecipePath, given: Any, choices: list[Schema]) -> Problem:
        node, kind = self.document.find(path), self._kind(path)
        allowed = {found for choice in choices for found in types(choice)} if kind is None else set()
        hint = suggest.value(given, allowed, quoted=node is not None and node.raw is None)
        said = f"{words.name(path)} must be {words.wanted(choices, kind)}, not {words.value(given)}"
        return self._at(path, said, hint)

    def _alternatives(self, error: ValidationError, path: RecipePath, base: RecipePath) -> Iterator[Problem]:
        """One alternative fits the type of what was given: what is wrong with that one. Else: what may stand here."""
        choices = alternatives(error.schema)
        fitting = [choice for choice in choices if _fits(error.instance, choice)]
        if not fitting:
            yield self._type(path, error.instance, choices)
            return
        enums = [choice for choice in choices if "enum" in choice or "const" in choice]
        if all(choice in enums for choice in fitting) and not isinstance(error.instance, dict | list):
            values = [value for choice in enums for value in choice.get("enum", [choice.get("const")])]
            hint = suggest.one_of(error.instance, values)
            said = f"{words.name(path)} must be {words.wanted(choices, None)}, not {words.bare(error.instance)}"
            yield self._at(path, said, hint) if hint or enums == choices else self._type(path, error.instance, choices)
            return
        found = [list(self.problems(error.instance, choice, path)) for choice in fitting]
        yield from min(found, key=len)


def _fits(instance: Any, choice: Schema) -> bool:
    """Whether a value has the JSON type of an alternative and, for a tagged union, the tag."""
    found = json_type(instance)
    if found not in types(choice) and not (found == "integer" and "number" in types(choice)):
        return False
    if not isinstance(instance, dict):
        return True
    tags = {
        key: sub["const"] if "const" in sub else sub["enum"][0]
        for key, sub in choice.get("properties", {}).items()
        if "const" in sub or len(sub.get("enum", [])) == 1
    }
    return all(instance.get(key, tag) == tag for key, tag in tags.items())
