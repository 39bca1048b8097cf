"""Stand-ins: copies of messages in which one private-use character replaces each stretch of text.

The render of such a copy shows where a template puts each text. Text that a template may look for (its own
constants, white space) can stay in place, so that the copy takes the same branches in the template as the messages.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from sftrun.data.masks.template import REASONING
from sftrun.errors import RowError
from sftrun.types import Message, Part

Cut = Callable[[str], list[tuple[str, bool]]]
"""Cuts a text into stretches, each with a flag that is set if a stand-in replaces it."""

FIXED = frozenset({"role", "type", "id", "tool_call_id", "name"})
"""Fields that templates compare or look up; they are never replaced."""

PRIVATE = ((0xF0000, 0xFFFFD), (0x100000, 0x10FFFD))
STAND_IN = re.compile("[\U000f0000-\U0010fffd]")
_ESCAPED = re.compile(r"\\u(db[89a-f][0-9a-f])\\u(d[c-f][0-9a-f]{2})|\\U(00(?:0f|10)[0-9a-f]{4})")


class Leaf(NamedTuple):
    """A text in a message: its path, and its stretches in the copy."""

    message: int
    path: tuple[str | int, ...]
    parts: list[str]

    @property
    def part(self) -> Part:
        """The part of the message that the text belongs to."""
        if any(step in REASONING for step in (self.path[0], *self.path[2:3])):  # path[2]: a key in a list content
            return "reasoning"
        return "tool_calls" if self.path[0] in ("tool_calls", "function_call") else "content"

    @property
    def is_answer(self) -> bool:
        """True for text and arguments of calls, which no template may leave out."""
        if self.path[0] == "content":
            return len(self.path) < 3 or self.path[2] == "text"
        return self.path[0] == "tool_calls" and "arguments" in self.path


class Slot(NamedTuple):
    """The text that a stand-in replaces, with its message and leaf."""

    text: str
    message: int
    leaf: int


class StandIns(NamedTuple):
    """Messages with stand-ins; `numbers` maps each stand-in to its slot."""

    messages: list[Message]
    slots: list[Slot]
    leaves: list[Leaf]
    numbers: dict[str, int]

    def role(self, message: int) -> str:
        """Returns the role of a message."""
        return str(self.messages[message].get("role"))


class MarkedText(NamedTuple):
    """A render with stand-ins, with the position and number of each slot, in order."""

    text: str
    slots: list[tuple[int, int]]


def find_slots(text: str, stand_ins: StandIns) -> MarkedText:
    """Finds stand-ins in a render."""
    found = ((match.start(), stand_ins.numbers.get(match[0])) for match in STAND_IN.finditer(text))
    return MarkedText(text, [(start, number) for start, number in found if number is not None])


def unescape(text: str, stand_ins: StandIns) -> str:
    """Writes stand-ins again that a template escapes, for JSON in ASCII or as Python's `repr` does."""

    def read(match: re.Match[str]) -> str:
        if match[3]:
            character = chr(int(match[3], 16))
        else:
            character = chr(0x10000 + ((int(match[1], 16) - 0xD800) << 10) + int(match[2], 16) - 0xDC00)
        return character if character in stand_ins.numbers else match[0]

    return _ESCAPED.sub(read, text) if "\\u" in text or "\\U" in text else text


def split_shape(messages: Sequence[Message]) -> tuple[Hashable, list[str]]:
    """Splits messages into their shape and their texts, in the order of slots."""
    key: list[Hashable] = []
    texts: list[str] = []
    for message in messages:
        content = message.get("content")
        if type(content) is str and len(message) == 2 and content and not content.isspace():
            key.append(message.get("role"))  # the usual message: a role and a content
            texts.append(content)
        else:
            key.append(_collect_shape(message, texts, False))
    return tuple(key), texts


def _collect_shape(value: Any, texts: list[str], fixed: bool) -> Hashable:
    if type(value) is str:
        if fixed or not value or value.isspace():
            return repr(value)
        texts.append(value)
        return ...
    if isinstance(value, dict):
        return ("{}", *((name, _collect_shape(item, texts, name in FIXED)) for name, item in value.items()))
    if isinstance(value, (list, tuple)):
        return ("[]", *(_collect_shape(item, texts, False) for item in value))
    return repr(value)


def make_stand_ins(messages: Sequence[Message], cut: Cut, used: str = "") -> StandIns:
    """Copies messages with stand-ins that do not occur in `used`; raises RowError if there are not enough of them."""
    return _Copier(cut, used).copy_messages(messages)


class _Copier:
    def __init__(self, cut: Cut, used: str) -> None:
        self._cut = cut
        self._free = _list_free_characters(set(STAND_IN.findall(used)))
        self._stand_ins = StandIns([], [], [], {})

    def copy_messages(self, messages: Sequence[Message]) -> StandIns:
        for index, message in enumerate(messages):
            self._stand_ins.messages.append(
                {name: self._copy(item, index, (name,), name in FIXED) for name, item in message.items()}
            )
        return self._stand_ins

    def _copy(self, value: Any, message: int, path: tuple[str | int, ...], fixed: bool) -> Any:
        if type(value) is str and not fixed:
            return self._replace_text(value, message, path)
        if isinstance(value, dict):
            return {name: self._copy(item, message, (*path, name), name in FIXED) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._copy(item, message, (*path, index), False) for index, item in enumerate(value)]
        return value

    def _replace_text(self, text: str, message: int, path: tuple[str | int, ...]) -> str:
        leaf = Leaf(message, path, [])
        for stretch, replaced in self._cut(text):
            leaf.parts.append(self._take_stand_in(stretch, message) if replaced else stretch)
        self._stand_ins.leaves.append(leaf)
        return "".join(leaf.parts)

    def _take_stand_in(self, stretch: str, message: int) -> str:
        character = next(self._free, None)
        if character is None:
            raise RowError("the conversation is too long for a proof word by word")
        self._stand_ins.numbers[character] = len(self._stand_ins.slots)
        self._stand_ins.slots.append(Slot(stretch, message, len(self._stand_ins.leaves)))
        return character


def _list_free_characters(used: set[str]) -> Iterator[str]:
    for first, last in PRIVATE:
        for code in range(first, last + 1):
            if chr(code) not in used:
                yield chr(code)


def cut_whole(text: str) -> list[tuple[str, bool]]:
    """Replaces each text as a whole; a blank one stays, because templates test for emptiness."""
    return [(text, bool(text) and not text.isspace())]


def find_marks(constants: Iterable[str]) -> list[str]:
    """Returns the constants that look like marks, such as `</think>`, not like words."""
    return [constant for constant in constants if len(constant) > 2 and not constant.replace(" ", "").isalnum()]


def make_mark_cutter(constants: Iterable[str]) -> Cut:
    """Makes a cutter that leaves marks in place, with the white space around them."""
    return _make_cutter(find_marks(constants), [])


def make_word_cutter(constants: Iterable[str]) -> Cut:
    """Makes a cutter that leaves in place every constant, all white space, and the characters that filters escape."""
    return _make_cutter(constants, [r"\s+", r"""["'\\<>&]"""])


def _make_cutter(constants: Iterable[str], patterns: list[str]) -> Cut:
    kept = sorted((constant for constant in constants if constant.strip()), key=len, reverse=True)
    found = re.compile("|".join([re.escape(constant) for constant in kept] + patterns) or "(?!)")

    def cut(text: str) -> list[tuple[str, bool]]:
        stretches: list[tuple[str, bool]] = []
        end = 0
        for match in found.finditer(text):
            stretches += [*_split_spaces(text[end : match.start()]), (match[0], False)]
            end = match.end()
        return [stretch for stretch in stretches + _split_spaces(text[end:]) if stretch[0]]

    return cut


def _split_spaces(text: str) -> list[tuple[str, bool]]:
    core = text.strip()
    if not core:
        return [(text, False)]
    start = text.index(core)
    return [(text[:start], False), (core, True), (text[start + len(core) :], False)]
