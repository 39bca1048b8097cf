"""What was read: values that know where they were written."""

from pathlib import Path
from typing import Any

import msgspec

from sftrun.errors import Place, RecipePath


class Origin(msgspec.Struct, frozen=True):
    """A text that values were written in: a file, or one override (then `prefix` is what stands before the value)."""

    shown: str
    folder: Path
    lines: list[str]
    prefix: str | None = None

    @property
    def is_override(self) -> bool:
        """Whether this is a `--set` or an environment variable, whose text is typed by the schema."""
        return self.prefix is not None

    def place(self, line: int, column: int, length: int = 1) -> Place:
        """The place of a 0-based line and column."""
        if self.prefix is not None:
            offset = len(self.prefix) if line == 0 else 0
            text = self.prefix + self.lines[0]
            return Place(self.shown, None, offset + column + 1, length, text)
        text = self.lines[line] if line < len(self.lines) else ""
        return Place(self.shown, line + 1, column + 1, max(length, 1), text)


class Node(msgspec.Struct, frozen=True):
    """A value with its place: a scalar, a list of nodes, or a dict of nodes and the places of its keys.

    `raw` is the text of a scalar that was written without quotes.
    """

    value: Any
    place: Place
    origin: Origin
    keys: dict[str, Place] = {}
    raw: str | None = None

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def child(self, key: str | int) -> "Node | None":
        """The value under a key or an index, where there is one."""
        if isinstance(self.value, dict):
            return self.value.get(key)
        if isinstance(self.value, list) and isinstance(key, int) and 0 <= key < len(self.value):
            item: Node = self.value[key]
            return item
        return None


class Document:
    """A recipe as read, with the place of every key and value."""

    def __init__(self, root: Node) -> None:
        self.root = root

    @property
    def data(self) -> Any:
        """The plain data."""
        return self.root.plain()

    def find(self, path: RecipePath) -> Node | None:
        """The node that a path leads to."""
        node: Node | None = self.root
        for key in path:
            node = node.child(key) if node else None
        return node

    def place(self, path: RecipePath) -> Place:
        """Where a value stands; for a list or a mapping, where its key does; for what is absent, its parent."""
        node = self.find(path)
        if node is not None and not isinstance(node.value, dict | list):
            return node.place
        return self.key_place(path)

    def key_place(self, path: RecipePath) -> Place:
        """Where the key that leads to a value stands."""
        while path:
            parent = self.find(path[:-1])
            if parent is not None:
                found = parent.keys.get(str(path[-1])) if isinstance(parent.value, dict) else None
                item = parent.child(path[-1])
                if found or item:
                    return found or item.place  # type: ignore[union-attr]
            path = path[:-1]
        top = self.root.place
        return Place(top.file, top.line and 1, top.column and 1)

    def replaced(self, path: RecipePath, value: Any) -> "Document":
        """A copy in which the node at `path` has another value."""
        return Document(_replaced(self.root, path, value))

    def files(self) -> list[str]:
        """The files that the values come from, the recipe's own first."""
        seen = {self.root.origin.shown: None}
        todo = [self.root]
        while todo:
            node = todo.pop()
            if not node.origin.is_override:
                seen.setdefault(node.origin.shown)
            todo.extend(_children(node))
        return list(seen)


def _children(node: Node) -> list[Node]:
    if isinstance(node.value, dict):
        return list(node.value.values())
    return node.value if isinstance(node.value, list) else []


def _replaced(node: Node, path: RecipePath, value: Any) -> Node:
    if not path:
        return msgspec.structs.replace(node, value=value)
    key, rest = path[0], path[1:]
    copy = node.value.copy()
    copy[key] = _replaced(copy[key], rest, value)
    return msgspec.structs.replace(node, value=copy)
