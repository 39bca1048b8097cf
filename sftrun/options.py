"""Typed options: the only description of every setting, and the source of its JSON Schema.

The recipe engine acts on these types of a field:

- `PathText`: a path, relative to the file that it is written in; may hold `${env:NAME}`.
- `NameOrPath`: a name, or a path if `is_path` says so.
- `SecretText`: a secret, which must be `${env:NAME}`, so that it is never written out.
- `component("judge")`: the name of a component of that kind, with its options.
"""

import functools
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from sftrun import scrub
from sftrun.errors import Problem, UserError

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_):
        return lambda cls: cls


__all__ = [
    "Count",
    "Meta",
    "NameOrPath",
    "Options",
    "PathText",
    "SecretText",
    "Use",
    "as_use",
    "changed_leaves",
    "component",
    "dataclass_transform",
    "expand",
    "is_path",
    "leaves",
    "parse",
    "schema",
    "written",
]

ENV = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")

Count = Annotated[int, Meta(ge=1)]
PathText = Annotated[str, Meta(extra_json_schema={"format": "path"})]
NameOrPath = Annotated[str, Meta(extra_json_schema={"format": "name-or-path"})]
SecretText = Annotated[str, Meta(extra_json_schema={"format": "secret"})]


@dataclass_transform(frozen_default=True, kw_only_default=True)  # tells type checkers that subclasses inherit both
class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every options class: frozen, keyword-only, without unknown fields."""


class Use(Options, rename={"with_": "with"}):
    """A reference to a component by its name, with its options."""

    use: Annotated[str, Meta(description="Name of the component.")]
    with_: Annotated[dict[str, Any], Meta(description="Options of the component.")] = {}


def as_use(value: str | Use) -> Use:
    """Returns the long form of a component; a bare name is short for a component without options."""
    return Use(use=value) if isinstance(value, str) else value


def component(kind: str) -> Meta:
    """Marks a field of type `str | Use`, or a list of these, as naming components of `kind`."""
    return Meta(extra_json_schema={"x-component": kind})


def is_path(text: str) -> bool:
    """Returns True if a `NameOrPath` is a path: it starts with `.`, `/` or `~`, is absolute, or ends in `.jinja`."""
    return text.startswith((".", "/", "~")) or os.path.isabs(text) or text.endswith(".jinja")


T = TypeVar("T")


@functools.cache
def schema(options: type) -> dict[str, Any]:
    """Returns the JSON Schema (Draft 2020-12) of an options class, with nested classes inlined. Do not modify it."""
    (root,), definitions = msgspec.json.schema_components([options], ref_template="#/$defs/{name}")
    inlined: dict[str, Any] = _inline(root, definitions)
    return inlined


def _inline(node: Any, definitions: dict[str, Any], inside_any_of: bool = False) -> Any:
    if isinstance(node, list):
        return [_inline(item, definitions, inside_any_of) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        name = node["$ref"].rsplit("/", 1)[1]
        target = _inline(definitions[name], definitions)
        siblings = _inline({key: value for key, value in node.items() if key != "$ref"}, definitions)
        if name == Use.__name__ and not inside_any_of:  # a bare name is short for it
            default = {"default": siblings["default"]["use"]} if "default" in siblings else {}
            return {"anyOf": [{"type": "string"}, target], **siblings, **default}
        return {**target, **siblings}
    return {key: _inline(value, definitions, key == "anyOf") for key, value in node.items()}


def parse(data: Any, options: type[T]) -> T:
    """Converts plain data to an instance of an options class; raises UserError if the data does not fit."""
    try:
        return msgspec.convert(data, options)
    except msgspec.ValidationError as error:
        raise UserError(f"{options.__name__}: {error}") from None


def expand(value: Any) -> Any:
    """Replaces `${env:NAME}` in every string below `value`; raises UserError for a variable that is not set."""
    if isinstance(value, dict):
        return {key: expand(item) for key, item in value.items()}
    if isinstance(value, list):
        return [expand(item) for item in value]
    return ENV.sub(_variable, value) if isinstance(value, str) else value


def _variable(match: re.Match[str]) -> str:
    name = match[1]
    scrub.use_variable(name)
    if name not in os.environ:
        raise UserError(Problem(f"the environment variable {name} is not set", hint=f"set it: export {name}=…"))
    return os.environ[name]


def leaves(options: Options) -> Iterator[tuple[str, Any]]:
    """Yields the dotted keys of an options object and those nested in it, and their values."""
    for name in options.__struct_fields__:
        value = getattr(options, name)
        if isinstance(value, Options) and _defaults(type(options))[name] is not None:
            yield from ((f"{name}.{key}", inner) for key, inner in leaves(value))
        else:
            yield name, value


@functools.cache
def usual_leaves(options: type[Options]) -> dict[str, Any]:
    """Returns the dotted keys of options, and their defaults."""
    return dict(leaves(options()))


def changed_leaves(options: Options) -> Iterator[tuple[str, Any]]:
    """Yields the dotted keys whose values are not the defaults, and these values."""
    usual = usual_leaves(type(options))
    yield from ((key, value) for key, value in leaves(options) if value != usual[key])


@functools.cache
def _defaults(options: type[Options]) -> dict[str, Any]:
    fields = msgspec.structs.fields(options)
    return {each.name: each.default_factory if each.default is msgspec.NODEFAULT else each.default for each in fields}


def written(options: Options) -> dict[str, Any]:
    """Returns an options object as plain data, without what has its default: as a person would write it."""
    data: dict[str, Any] = {}
    for field in msgspec.structs.fields(options):
        value = getattr(options, field.name)
        if field.default is not msgspec.NODEFAULT and value == field.default:
            continue
        if field.default_factory is not msgspec.NODEFAULT and value == field.default_factory():
            continue
        nested = isinstance(value, Options) and not isinstance(value, Use)
        data[field.encode_name] = written(value) if nested else msgspec.to_builtins(value)
    return data
