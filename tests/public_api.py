"""The public API, read from the source: names, signatures, fields. For docs/plugin-api.md and tests/api/*.txt.

Annotations are those of the source, so that they read the same on every version of Python.
"""

import ast
import functools
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from sftrun import api_changes, kinds
from sftrun.api_changes import Change
from sftrun.events import EVENTS
from sftrun.hookspecs import KINDS

MODULES = ("sftrun", "sftrun.kinds", "sftrun.types", "sftrun.events", "sftrun.errors")
MODULES += ("sftrun.files", "sftrun.strict_json", "sftrun.hub", "sftrun.data", "sftrun.testing")
CHECKS = "*"  # stands for every kind
# what plugins may use of a run directory; the rest is for sftrun alone
RUN_DIR = ("path", "prepared", "checkpoints", "model", "eval", "export", "tensorboard", "log")
RUN_DIR += ("recipe", "write_recipe", "write", "write_json", "read_json", "facts", "add_facts", "events", "__init__")
ATTRIBUTE = "attribute"  # in place of a type, for what `__init__` sets
EVENT_NAMES = {each: name for name, each in EVENTS.items()}

Surface = dict[str, str]
"""What each public name is: a signature, a type with a default, or a word."""


def surface() -> Surface:
    """Returns the public API: components by kind (`masker.choose`), then the names of the public modules."""
    found = {f"{CHECKS}.{each.name}": each.text for each in members(kinds.Checks)}
    for kind in KINDS:
        found |= {f"{kind}.{each.name}": each.text for each in members(kinds.PROTOCOLS[kind])}
        found |= {f"{kind}.{name}": "optional" for name in optional(kind)}
    for module in MODULES:
        for name, value in names(module):
            found |= {f"{module}.{key}": text for key, text in _entries(module, name, value)}
    training = importlib.import_module("sftrun.training")
    return found | {f"sftrun.training.{name}": "module" for name in training.__all__}


def optional(kind: str) -> list[str]:
    """Returns the optional methods and attributes of a kind, without those of every kind."""
    return [name for name in kinds.OPTIONAL[kind] if name not in (*kinds.CHECKS, *required(kind))]


def required(kind: str) -> list[str]:
    """Returns the names that the Protocol of a kind has."""
    return [each.name for each in members(kinds.PROTOCOLS[kind])]


def names(module: str) -> Iterator[tuple[str, Any]]:
    """Yields the names of a module's `__all__`, or those that it defines, with their values; Protocols of kinds and
    modules are left out.
    """
    found = importlib.import_module(module)
    for name in sorted(getattr(found, "__all__", None) or _defined(found)):
        value = getattr(found, name)
        is_kind = value in (kinds.Checks, *kinds.PROTOCOLS.values()) if inspect.isclass(value) else False
        if not name.startswith("_") and not isinstance(value, ModuleType) and not is_kind:
            yield name, value


def _defined(module: ModuleType) -> Iterator[str]:
    """Yields the classes, functions and type aliases of a module."""
    for node in _tree(module.__file__).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript):
            yield ast.unparse(node.targets[0])


def _entries(module: str, name: str, value: Any) -> Iterator[tuple[str, str]]:
    text = entry(module, name, value)
    yield name, text
    if text.startswith("class") and name not in ("Recipe", "Register"):  # a recipe has its own schema
        yield from ((f"{name}.{each.name}", each.text) for each in public_members(value))


def entry(module: str, name: str, value: Any) -> str:
    """Returns what a public name is, in a few words or as a signature."""
    home = str(getattr(value, "__module__", None))
    if home != module and home in MODULES:
        return f"is {home}.{name}"
    if home.split(".", maxsplit=1)[0] in ("msgspec", "pluggy"):
        return f"is of {home.split('.', maxsplit=1)[0]}"
    if inspect.isclass(value) and home.startswith("sftrun"):
        bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
        event = EVENT_NAMES.get(value)
        return (f"class({bases})" if bases else "class") + (f", '{event}'" if event else "")
    if inspect.isroutine(value):
        return signature(definition(value))
    return f"= {value}" if isinstance(value, int) else "type"


def public_members(owner: type) -> Iterator["Member"]:
    """Yields the members of a class that are part of the API: of a run directory not all are."""
    for each in members(owner):
        is_attribute = each.text == ATTRIBUTE
        if each.name in RUN_DIR if owner.__name__ == "RunDir" else not is_attribute:
            yield each


class Member(NamedTuple):
    """A field or method of a class: its name, its type or signature, and its docstring."""

    name: str
    text: str
    doc: str
    is_method: bool = False


def members(owner: type) -> Iterator[Member]:
    """Yields the public fields, attributes and methods of a class."""
    for node in definition(owner).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            default = f" = {_shown(node.value)}" if node.value else ""
            yield Member(node.target.id, annotation(node.annotation) + default, "")
        elif isinstance(node, ast.FunctionDef) and node.name == "__init__":
            yield from _attributes(node)
        elif isinstance(node, ast.FunctionDef) and (node.name == "__call__" or not node.name.startswith("_")):
            doc = ast.get_docstring(node) or ""
            if any(ast.unparse(each) == "property" for each in node.decorator_list):
                yield Member(node.name, annotation(node.returns), doc)
            else:
                yield Member(node.name, signature(node), doc, is_method=True)


def _attributes(initial: ast.FunctionDef) -> Iterator[Member]:
    """Yields the signature of `__init__`, and the attributes that it sets."""
    yield Member("__init__", signature(initial), "", is_method=True)
    for node in ast.walk(initial):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if _is_annotated(node) else []
        for target in targets:
            text = ast.unparse(target)
            if text.startswith("self.") and not text.startswith("self._"):
                yield Member(text.removeprefix("self."), ATTRIBUTE, "")


def _is_annotated(node: ast.AST) -> bool:
    return isinstance(node, ast.AnnAssign)


def signature(node: Any) -> str:
    """Returns the parameters and the result of a function, without `self`."""
    arguments = node.args
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(plain) - len(arguments.defaults)) + arguments.defaults
    parts = [_parameter(*each) for each in zip(plain, defaults, strict=True) if each[0].arg != "self"]
    if arguments.vararg:
        parts.append("*" + _parameter(arguments.vararg, None))
    elif arguments.kwonlyargs:
        parts.append("*")
    parts += [_parameter(*each) for each in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    if arguments.kwarg:
        parts.append("**" + _parameter(arguments.kwarg, None))
    returns = f" -> {annotation(node.returns)}" if node.returns else ""
    return f"({', '.join(parts)}){returns}"


def _parameter(node: ast.arg, default: ast.expr | None) -> str:
    kind = f": {annotation(node.annotation)}" if node.annotation else ""
    return node.arg + kind + (f" = {_shown(default)}" if default else "")


def _shown(default: ast.expr) -> str:
    """Returns a default value as text; one that means nothing outside its module is `…`."""
    text = ast.unparse(default)
    return "…" if text.startswith(("_", "lambda", "msgspec.field")) else text


def annotation(node: ast.expr | None) -> str:
    """Returns an annotation as text, without quotes, and without the description of an option."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        node = ast.parse(node.value, mode="eval").body
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Annotated" and isinstance(node.slice, ast.Tuple):
        node = node.slice.elts[0]
    return ast.unparse(node) if node is not None else ""


def definition(value: Any) -> Any:
    """Returns the syntax tree of a class or function."""
    value = inspect.unwrap(value)
    for node in _tree(importlib.import_module(value.__module__).__file__).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == value.__name__:
            return node
    raise LookupError(f"{value.__module__}.{value.__name__} is not at the top of its module")


@functools.cache
def _tree(file: str | None) -> ast.Module:
    return ast.parse(Path(str(file)).read_text("utf-8"))


def complaints(snapshots: dict[int, Surface], now: Surface, version: int) -> list[str]:
    """Returns what is wrong with the API of the current version, as compared with what was written down of it.

    Within a version nothing may be removed or changed, and what is added must be in CHANGES. Against the version
    before, all that differs must be in CHANGES, and what is removed must have been deprecated in an earlier version.
    """
    if version not in snapshots:
        return [f"tests/api/{version}.txt is missing: write it with SFTRUN_UPDATE=1"]
    found = [f"{key} was {_verb(now, key)} within version {version}" for key in _broken(snapshots[version], now)]
    found += _unlisted(snapshots[version], now, version, ("added",))
    if version - 1 in snapshots:
        before = snapshots[version - 1]
        found += _unlisted(before, now, version, ("added", "changed", "removed"))
        removed = [key for key in before if key not in now]
        found += [
            f"{key} is removed in version {version}, but no earlier version deprecates it"
            for key in removed
            if not any(_is_about(each, key) and each.what == "deprecated" for each in api_changes.CHANGES)
        ]
    return found


def _broken(before: Surface, now: Surface) -> list[str]:
    return [key for key, text in before.items() if now.get(key) != text]


def _verb(now: Surface, key: str) -> str:
    return "changed" if key in now else "removed"


def _unlisted(before: Surface, now: Surface, version: int, verbs: tuple[str, ...]) -> list[str]:
    """Returns complaints about differences that CHANGES does not have for a version."""
    changes = [each for each in api_changes.CHANGES if each.version == version]
    differing = [(key, _verb(now, key)) for key in _broken(before, now)]
    differing += [(key, "added") for key in now if key not in before]
    return [
        f"{key} is {verb} in version {version}, but CHANGES does not say so"
        for key, verb in differing
        if verb in verbs and not any(_is_about(each, key) and each.what == verb for each in changes)
    ]


def _is_about(change: Change, key: str) -> bool:
    """Returns True if a change is about a key of the surface or about its owner."""
    return key == change.name or key.startswith(f"{change.name}.")
