"""A recipe as it was read: values with the places that they were written in."""

from pathlib import Path
from typing import Any

import msgspec

from sftrun.errors import Place, RecipePath


class Origin(msgspec.Struct, frozen=True):
    """A text that values come from: a file, or one override, whose `prefix` is the text before the value."""

    name: str
    folder: Path
    lines: list[str]
    prefix: str | None = None

    @property
    def is_override(self) -> bool:
        """True for a `--set` or an environment variable; the schema decides the type of its value."""
        return self.prefix is not None

    def place(self, line: int, column: int, length: int = 1) -> Place:
        """Returns the place of a 0-based line and column."""
        if self.prefix is not None:
            offset = len(self.prefix) if line == 0 else 0
            text = self.prefix + self.lines[0]
            return Place(self.name, None, offset + column + 1, length, text)
        text = self.lines[line] if line < len(self.lines) else ""
        return Place(self.name, line + 1, column + 1, max(length, 1), text)


class Node(msgspec.Struct, frozen=True):
    """A value with its place: a scalar, a list of nodes, or a dict of nodes and the places of its keys.

    `raw` is the text of a scalar without quotes; None for anything else.
    """

    value: Any
    place: Place
    origin: Origin
    keys: dict[str, Place] = {}
    raw: str | None = None

    def plain(self) -> Any:
        """Returns the value without places."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def child(self, key: str | int) -> "Node | None":
        """Returns the node under a key or an index; None if there is none."""
        if isinstance(self.value, dict):
            return self.value.get(key)
        if isinstance(self.value, list) and isinstance(key, int) and 0 <= key < len(self.value):
            item: Node = self.value[key]
            return item
        return None


class Document:
    """A recipe as it was read, with the place of every key and value."""

    def __init__(self, root: Node) -> None:
        self.root = root

    @property
    def data(self) -> Any:
        """The values without places."""
        return self.root.plain()

    def find(self, path: RecipePath) -> Node | None:
        """Returns the node at a path; None if there is none."""
        node: Node | None = self.root
        for key in path:
            node = node.child(key) if node else None
        return node

    def place(self, path: RecipePath) -> Place:
        """Returns the place of a scalar; of a list or mapping, the place of its key; of a missing value, its parent."""
        node = self.find(path)
        if node is not None and not isinstance(node.value, dict | list):
            return node.place
        return self.key_place(path)

    def key_place(self, path: RecipePath) -> Place:
        """Returns the place of a value's key, of a list's item, or of the nearest parent that exists."""
        while path:
            parent = self.find(path[:-1])
            if parent is not None:
                key = parent.keys.get(str(path[-1])) if isinstance(parent.value, dict) else None
                item = parent.child(path[-1])
                if key or item:
                    return key or item.place  # type: ignore[union-attr]
            path = path[:-1]
        top = self.root.place
        return Place(top.file, top.line and 1, top.column and 1)

    def with_value(self, path: RecipePath, value: Any) -> "Document":
        """Returns a copy in which the node at `path` has another value."""
        return Document(_with_value(self.root, path, value))

    def files(self) -> list[str]:
        """Returns the names of the files that values come from, the recipe's own file first."""
        names = {self.root.origin.name: None}
        pending = [self.root]
        while pending:
            node = pending.pop()
            if not node.origin.is_override:
                names.setdefault(node.origin.name)
            pending.extend(_children(node))
        return list(names)


def _children(node: Node) -> list[Node]:
    if isinstance(node.value, dict):
        return list(node.value.values())
    return node.value if isinstance(node.value, list) else []


def _with_value(node: Node, path: RecipePath, value: Any) -> Node:
    if not path:
        return msgspec.structs.replace(node, value=value)
    key, rest = path[0], path[1:]
    copy = node.value.copy()
    copy[key] = _with_value(copy[key], rest, value)
    return msgspec.structs.replace(node, value=copy)
