"""Probes: copies of messages in which one private-use character stands for each stretch of text.

Rendering a probe shows where a template puts each text, whatever the texts are. What a template may look for
inside a text (its own constants, white space) can be left in place, so that the probe takes the same way
through the template as the messages do.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from sftrun.data.masks.template import REASONING
from sftrun.errors import RowError
from sftrun.types import Message, Part

Cut = Callable[[str], list[tuple[str, bool]]]
"""Cuts a text into stretches, each with whether a stand-in replaces it."""

FIXED = frozenset({"role", "type", "id", "tool_call_id", "name"})
"""Fields that templates compare or look up; they are never replaced."""

PRIVATE = ((0xF0000, 0xFFFFD), (0x100000, 0x10FFFD))
STAND_IN = re.compile("[\U000f0000-\U0010fffd]")


class Leaf(NamedTuple):
    """A text in a message: where it is, and its stretches, each as it stands in the probe."""

    message: int
    path: tuple[str | int, ...]
    parts: list[str]

    @property
    def part(self) -> Part:
        """The part of its message that it belongs to."""
        if any(step in REASONING for step in (self.path[0], *self.path[2:3])):  # or in a content that is a list
            return "reasoning"
        return "tool_calls" if self.path[0] in ("tool_calls", "function_call") else "content"

    @property
    def is_answer(self) -> bool:
        """Whether it is text or an argument of a call, which no template may leave out."""
        if self.path[0] == "content":
            return len(self.path) < 3 or self.path[2] == "text"
        return self.path[0] == "tool_calls" and "arguments" in self.path


class Slot(NamedTuple):
    """What one stand-in stands for."""

    text: str
    message: int
    leaf: int


class Probe(NamedTuple):
    """Messages with stand-ins, and what these stand for."""

    messages: list[Message]
    slots: list[Slot]
    leaves: list[Leaf]
    numbers: dict[str, int]

    def role(self, message: int) -> str:
        return str(self.messages[message].get("role"))


class Marked(NamedTuple):
    """The render of a probe, with the position and number of each slot in it, in order."""

    text: str
    slots: list[tuple[int, int]]


def mark(text: str, probe: Probe) -> Marked:
    """Finds a probe's stand-ins in a render."""
    found = ((match.start(), probe.numbers.get(match[0])) for match in STAND_IN.finditer(text))
    return Marked(text, [(start, number) for start, number in found if number is not None])


def shape(messages: Sequence[Message]) -> tuple[Hashable, list[str]]:
    """Everything about messages but their texts, and the texts, in the order of a probe's slots."""
    key: list[Hashable] = []
    texts: list[str] = []
    for message in messages:
        content = message.get("content")
        if type(content) is str and len(message) == 2 and content and not content.isspace():
            key.append(message.get("role"))  # the usual message: a role and a content
            texts.append(content)
        else:
            key.append(_shape(message, texts, False))
    return tuple(key), texts


def _shape(value: Any, texts: list[str], fixed: bool) -> Hashable:
    if type(value) is str:
        if fixed or not value or value.isspace():
            return repr(value)
        texts.append(value)
        return ...
    if isinstance(value, dict):
        return ("{}", *((name, _shape(item, texts, name in FIXED)) for name, item in value.items()))
    if isinstance(value, (list, tuple)):
        return ("[]", *(_shape(item, texts, False) for item in value))
    return repr(value)


def probe(messages: Sequence[Message], cut: Cut, taken: str = "") -> Probe:
    """A copy with stand-ins that do not occur in `taken`. Raises RowError where there are not enough of them."""
    return _Writer(cut, taken).write(messages)


class _Writer:
    def __init__(self, cut: Cut, taken: str) -> None:
        self._cut = cut
        self._free = _characters(set(STAND_IN.findall(taken)))
        self._probe = Probe([], [], [], {})

    def write(self, messages: Sequence[Message]) -> Probe:
        for index, message in enumerate(messages):
            self._probe.messages.append(
                {name: self._copy(item, index, (name,), name in FIXED) for name, item in message.items()}
            )
        return self._probe

    def _copy(self, value: Any, message: int, path: tuple[str | int, ...], fixed: bool) -> Any:
        if type(value) is str and not fixed:
            return self._text(value, message, path)
        if isinstance(value, dict):
            return {name: self._copy(item, message, (*path, name), name in FIXED) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._copy(item, message, (*path, index), False) for index, item in enumerate(value)]
        return value

    def _text(self, text: str, message: int, path: tuple[str | int, ...]) -> str:
        leaf = Leaf(message, path, [])
        for stretch, replaced in self._cut(text):
            leaf.parts.append(self._stand_in(stretch, message) if replaced else stretch)
        self._probe.leaves.append(leaf)
        return "".join(leaf.parts)

    def _stand_in(self, stretch: str, message: int) -> str:
        character = next(self._free, None)
        if character is None:
            raise RowError("the conversation is too long to be proven word by word")
        self._probe.numbers[character] = len(self._probe.slots)
        self._probe.slots.append(Slot(stretch, message, len(self._probe.leaves)))
        return character


def _characters(taken: set[str]) -> Iterator[str]:
    for first, last in PRIVATE:
        for code in range(first, last + 1):
            if chr(code) not in taken:
                yield chr(code)


def whole(text: str) -> list[tuple[str, bool]]:
    """One stand-in for each text; a blank one stays, because templates ask whether there is any."""
    return [(text, bool(text) and not text.isspace())]


def marks(constants: Iterable[str]) -> list[str]:
    """The constants that look like marks, such as `</think>`, not like words."""
    return [constant for constant in constants if len(constant) > 2 and not constant.replace(" ", "").isalnum()]


def around(constants: Iterable[str]) -> Cut:
    """Leaves marks in place, and white space beside them."""
    return _cutter(marks(constants), [])


def by_words(constants: Iterable[str]) -> Cut:
    """Leaves every constant in place, all white space, and what filters escape."""
    return _cutter(constants, [r"\s+", r"""["'\\<>&]"""])


def _cutter(constants: Iterable[str], patterns: list[str]) -> Cut:
    kept = sorted((constant for constant in constants if constant.strip()), key=len, reverse=True)
    found = re.compile("|".join([re.escape(constant) for constant in kept] + patterns) or "(?!)")

    def cut(text: str) -> list[tuple[str, bool]]:
        stretches: list[tuple[str, bool]] = []
        end = 0
        for match in found.finditer(text):
            stretches += [*_trimmed(text[end : match.start()]), (match[0], False)]
            end = match.end()
        return [stretch for stretch in stretches + _trimmed(text[end:]) if stretch[0]]

    return cut


def _trimmed(text: str) -> list[tuple[str, bool]]:
    core = text.strip()
    if not core:
        return [(text, False)]
    start = text.index(core)
    return [(text[:start], False), (core, True), (text[start + len(core) :], False)]
