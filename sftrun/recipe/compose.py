"""Parses YAML 1.2 text into nodes with places: plain data only, with limits on depth, size and numbers."""

import contextlib
import math
import re
from collections.abc import Iterator
from typing import Any

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from sftrun import scrub
from sftrun.errors import Problem, UserError
from sftrun.recipe.document import Node, Origin

MAX_DEPTH = 50
MAX_NODES = 50_000  # values, with aliases expanded: a few lines of aliases can mean millions of values
MAX_INTEGER = 2**63

LINE_BREAK = re.compile(r"\r\n|\n|\r")
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")

# What libyaml may read otherwise than YAML 1.2: tabs, tags, escapes, directives, line breaks of Unicode, marks of keys
# and documents, odd names of anchors, comments after the mark of a block.
ODD = re.compile(
    r"[\t\x85\u2028\u2029\ufeff!]|\\(?!\n)|^(%|---|\.\.\.)|(^|[\s,\[{:-])(\?|[&*](?![\w-]+([\s,\]}]|\Z)))|[|>][-+0-9]*#",
    re.MULTILINE,
)

# The core schema of YAML 1.2: `no` and `on` are text, `2e-4` is a number.
NULL = re.compile(r"|~|null|Null|NULL")
TRUE = re.compile(r"true|True|TRUE")
FALSE = re.compile(r"false|False|FALSE")
INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

CORE = "tag:yaml.org,2002:"
SCALAR_TAGS = {CORE + name for name in ("null", "bool", "int", "float")}
HINTS = (
    ("'\\t' that cannot start any token", "indent with spaces, not tabs"),
    (
        "mapping values are not allowed",
        "put text that contains ': ' in quotes, or check the indentation of the lines above",
    ),
    ("undefined alias", "define the anchor (&name) above its alias (*name)"),
    ("expected the node content", "put text that starts with this character in quotes"),
    ("cannot start any token", "put text that starts with this character in quotes"),
)


class _Part(msgspec.Struct):
    """A node with its number of values and its depth."""

    node: Node
    size: int = 1
    height: int = 1


def scalar(text: str) -> Any:
    """Returns the value of a plain (unquoted) scalar; raises ValueError for an infinite or too large number."""
    if NULL.fullmatch(text):
        return None
    if TRUE.fullmatch(text) or FALSE.fullmatch(text):
        return text[0] in "tT"
    if NOT_FINITE.fullmatch(text):
        raise ValueError(f"a number must be finite, not {text}")
    if INTEGER.fullmatch(text):
        return _integer(text)
    if FLOAT.fullmatch(text):
        value = float(text)
        if math.isinf(value):
            raise ValueError("this number is too large")
        return value
    return text


def _integer(text: str) -> int:
    if len(text) > 30:  # int() refuses thousands of digits, with an unhelpful message
        raise ValueError("this number is too large")
    value = int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if abs(value) > MAX_INTEGER:
        raise ValueError("this number is too large")
    return value


def compose(text: str, origin: Origin) -> tuple[Node | None, list[Problem]]:
    """Returns the document in a text (None if it is empty) and the problems that were found.

    Raises UserError if the text is not YAML or exceeds a limit.
    """
    bad = UNPRINTABLE.search(text)
    if bad:
        line, column = _position(text, bad.start())
        raise UserError(
            Problem(f"a recipe must not contain the character U+{ord(bad[0]):04X}", origin.place(line, column))
        )
    if quick := _compose_quickly(text, origin):
        return quick.node, []
    composer = _Composer(text, origin, _parse_slowly(text))
    try:
        document = composer.document()
    except UserError:
        scrub.hide_written_out(text)
        raise
    if composer.problems:
        scrub.hide_written_out(text)
    return document, composer.problems


class _Quick(msgspec.Struct):
    """A document that libyaml has read without any problem; its node is None if it is empty."""

    node: Node | None


def _compose_quickly(text: str, origin: Origin) -> _Quick | None:
    """Reads a text with libyaml, five times as fast; None if anything is wrong: ruamel.yaml explains it better.

    None too for what libyaml reads as YAML 1.1, and for what it accepts and YAML 1.2 does not.
    """
    if ODD.search(text):
        return None
    composer = _Composer(text, origin, _parse_quickly(text))
    try:
        document = composer.document()
    except Exception:  # said by the other parser
        return None
    return None if composer.problems else _Quick(document)


def _parse_quickly(text: str) -> Iterator[Any]:
    import yaml

    yield from yaml.parse(text, Loader=yaml.CBaseLoader)


def _parse_slowly(text: str) -> Iterator[Any]:
    yield from YAML(typ="safe", pure=True).parse(text)


def _position(text: str, index: int) -> tuple[int, int]:
    lines = LINE_BREAK.split(text[:index])
    return len(lines) - 1, len(lines[-1])


class _Composer:
    def __init__(self, text: str, origin: Origin, events: Iterator[Any]) -> None:
        self.origin, self._text = origin, text
        self.problems: list[Problem] = []
        self._anchors: dict[str, _Part | None] = {}
        self._events = self._parse(events)
        self._count = 0

    def document(self) -> Node | None:
        """Reads the only document of the stream."""
        next(self._events)
        event = next(self._events)
        if _is(event, "StreamEnd"):
            return None
        part = self._part(next(self._events), 1)
        next(self._events)
        event = next(self._events)
        if not _is(event, "StreamEnd"):
            raise self._error("a recipe must be one YAML document, and a second one starts here", event)
        return part.node

    def _parse(self, events: Iterator[Any]) -> Iterator[Any]:
        line = column = 0
        try:
            for event in events:
                line, column = event.end_mark.line, event.end_mark.column
                yield event
        except MarkedYAMLError as error:
            raise self._not_yaml(error) from None
        except UserError:
            raise
        except Exception as error:  # ruamel.yaml fails with other errors on malformed escapes
            raise UserError(Problem(f"not valid YAML after this: {error}", self.origin.place(line, column))) from None

    def _not_yaml(self, error: MarkedYAMLError) -> UserError:
        if opened := self._find_open_quote(error):
            return opened
        unclosed = "end of stream" in str(error.problem)  # its start is more helpful than the end of the file
        mark = error.context_mark if unclosed and error.context_mark else error.problem_mark or error.context_mark
        where = self.origin.place(mark.line, mark.column) if mark else self.origin.place(0, 0)
        reason = " ".join(str(part) for part in (error.problem, error.context) if part)
        hint = next((hint for sign, hint in HINTS if sign in reason), None)
        return UserError(Problem(f"not valid YAML: {reason}", where, hint=hint))

    def _find_open_quote(self, error: MarkedYAMLError) -> UserError | None:
        """Returns the error of a quote that only a later quote closes, in front of which everything is text."""
        mark = error.problem_mark or error.context_mark
        line = mark.line if mark else -1
        if "end of stream" in str(error.problem) and error.context_mark:
            line = error.context_mark.line
        found = None
        for start, end in reversed(list(_long_quotes(self._text))):
            if end.line == line and start.line < line:
                found, line = (start, end), start.line
        if found is None:
            return None
        start, end = found
        message = f"not valid YAML: the quote that opens here is closed only on line {end.line + 1}, in other text"
        return UserError(Problem(message, self.origin.place(start.line, start.column), hint="close it on its own line"))

    def _error(self, message: str, event: Any, hint: str | None = None) -> UserError:
        return UserError(Problem(message, self._place(event), hint=hint))

    def _note(self, message: str, event: Any, hint: str | None = None) -> None:
        self.problems.append(Problem(message, self._place(event), hint=hint))

    def _place(self, event: Any) -> Any:
        start, end = event.start_mark, event.end_mark
        line = self.origin.lines[start.line] if start.line < len(self.origin.lines) else ""
        stop = end.column if end.line == start.line else len(line.rstrip())
        return self.origin.place(start.line, start.column, max(stop - start.column, 1))

    def _part(self, event: Any, depth: int) -> _Part:
        if _is(event, "Alias"):
            part = self._alias(event)
        else:
            if event.anchor:
                self._anchors[event.anchor] = None  # not complete yet: an alias to it would be recursive
            part = self._fresh(event, depth)
            if event.anchor:
                self._anchors[event.anchor] = part
        self._count += part.size if _is(event, "Alias") else 1
        if depth + part.height - 1 > MAX_DEPTH:
            raise self._error(f"nested deeper than {MAX_DEPTH} levels", event)
        if self._count > MAX_NODES:
            raise self._error(f"more than {MAX_NODES} values (aliases counted in full)", event)
        return part

    def _alias(self, event: Any) -> _Part:
        if event.anchor not in self._anchors:
            raise self._error(f"undefined alias *{event.anchor}", event, dict(HINTS)["undefined alias"])
        part = self._anchors[event.anchor]
        if part is None:
            raise self._error(f"the alias *{event.anchor} refers to a value that contains it", event)
        return part

    def _fresh(self, event: Any, depth: int) -> _Part:
        if depth > MAX_DEPTH:
            raise self._error(f"nested deeper than {MAX_DEPTH} levels", event)
        if _is(event, "Scalar"):
            return _Part(self._scalar(event))
        return self._sequence(event, depth) if _is(event, "SequenceStart") else self._mapping(event, depth)

    def _scalar(self, event: Any) -> Node:
        plain = event.implicit[0] and event.tag != "!"
        try:
            value = self._tagged(event) if event.tag not in (None, "!") else event.value
            if plain and event.tag is None:
                value = scalar(event.value)
            if isinstance(value, str) and ("\0" in value or any("\ud800" <= char <= "\udfff" for char in value)):
                raise ValueError("text must not contain NUL or half of a surrogate pair")
        except ValueError as error:
            self._note(str(error), event)
            value = None if not plain else event.value
        return Node(value, self._place(event), self.origin, raw=event.value if plain else None)

    def _tagged(self, event: Any) -> Any:
        if event.tag == CORE + "str":
            return event.value
        if event.tag not in SCALAR_TAGS:
            raise ValueError(f"unknown tag {_short(event.tag)}; a recipe can only hold plain data")
        value = scalar(event.value)
        kind = {type(None): "null", bool: "bool", int: "int", float: "float"}.get(type(value))
        if kind == "int" and event.tag == CORE + "float":
            return float(value)
        if event.tag != CORE + str(kind):
            raise ValueError(f"{event.value!r} is not a value of the type {_short(event.tag)}")
        return value

    def _collection_tag(self, event: Any, expected: str) -> None:
        if event.tag not in (None, "!", CORE + expected):
            self._note(f"unknown tag {_short(event.tag)}; a recipe can only hold plain data", event)

    def _sequence(self, start: Any, depth: int) -> _Part:
        self._collection_tag(start, "seq")
        parts: list[_Part] = []
        for event in self._events:
            if _is(event, "SequenceEnd"):
                break
            parts.append(self._part(event, depth + 1))
        node = Node([part.node for part in parts], self._place(start), self.origin)
        return _sum(node, parts)

    def _mapping(self, start: Any, depth: int) -> _Part:
        self._collection_tag(start, "map")
        parts: list[_Part] = []
        values: dict[str, Node] = {}
        keys: dict[str, Any] = {}
        merged: list[Node] = []
        for event in self._events:
            if _is(event, "MappingEnd"):
                break
            key = self._key(event, depth)
            part = self._part(next(self._events), depth + 1)
            if part.node.raw == "":  # an empty value has no text: it gets the place of the key
                part.node = msgspec.structs.replace(part.node, place=self._place(event))
            parts.append(part)
            if key == "<<" and event.implicit[0]:
                merged += self._merge_sources(event, part.node)
            elif key in keys:
                self._note(
                    f"duplicate key '{key}', first written on line {keys[key].line}", event, "remove one of the two"
                )
            elif key is not None:
                values[key], keys[key] = part.node, self._place(event)
        for node in merged:  # keys of the mapping itself win, then keys of earlier sources
            values = {**node.value, **values}
            keys = {**node.keys, **keys}
        return _sum(Node(values, self._place(start), self.origin, keys), parts)

    def _key(self, event: Any, depth: int) -> str | None:
        part = self._part(event, depth + 1)
        if isinstance(part.node.value, str):
            return part.node.value
        given = "a list or a mapping" if part.node.raw is None else repr(part.node.raw)
        self._note(f"a key must be text, not {given}", event, "put it in quotes")
        return None

    def _merge_sources(self, event: Any, node: Node) -> list[Node]:
        sources = node.value if isinstance(node.value, list) else [node]
        if all(isinstance(source.value, dict) for source in sources):
            return sources
        self._note("<< takes a mapping, or a list of mappings", event)
        return []


def _long_quotes(text: str) -> Iterator[tuple[Any, Any]]:
    """Yields the start and the end of each text in quotes that spans several lines, up to the first error."""
    with contextlib.suppress(Exception):
        for token in YAML(typ="safe", pure=True).scan(text):
            quoted = type(token).__name__ == "ScalarToken" and token.style in ("'", '"')
            if quoted and token.end_mark.line > token.start_mark.line:
                yield token.start_mark, token.end_mark


def _is(event: Any, name: str) -> bool:
    return bool(type(event).__name__ == name + "Event")


def _sum(node: Node, parts: list[_Part]) -> _Part:
    return _Part(node, 1 + sum(p.size for p in parts), 1 + max((p.height for p in parts), default=0))


def _short(tag: str) -> str:
    return f"!!{tag[len(CORE) :]}" if tag.startswith(CORE) else tag
