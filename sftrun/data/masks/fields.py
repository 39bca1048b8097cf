"""The parts of an answer: cuts its text into reasoning, content and tool calls."""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from sftrun.data.masks.regions import Region, find_called_names
from sftrun.data.masks.stand_ins import MarkedText, StandIns
from sftrun.types import Part

_CLOSING = re.compile(  # `</think>`, `[/THINK]`, `<|END_THINKING|>`, `<|eom|>`, `<channel|>`
    r"(?:</[^<>\s]+>|\[/[^\[\]\s]+\]|<[^<>\s]*(?:end|eo[mst])[^<>\s]*>|<[^<>|\s]+\|>)\s*", re.IGNORECASE
)


class _Sign(NamedTuple):
    """Text `[start, end)` whose part is known, and the leaf it belongs to, if any."""

    start: int
    end: int
    part: Part
    leaf: int = -1


def cut_region(marked: MarkedText, stand_ins: StandIns, region: Region) -> Iterator[tuple[int, int, Part]]:
    """Cuts a region, up to its end of turn, into the parts of its message.

    Template text between two parts belongs to the second one, except for the mark that closes reasoning, with the white
    space after it, and for the text that ends a call.
    """
    signs = sorted([*_find_texts(marked, stand_ins, region), *_find_names(marked, stand_ins, region)])
    begin, last = region.start, signs[-1].part if signs else "content"
    end_sign = _Sign(region.cut, region.cut, "content" if last == "reasoning" else last)
    for sign, after in pairwise([*signs, end_sign]):
        if sign.part != after.part:
            tail = _get_tail(stand_ins, sign.leaf) if sign.leaf >= 0 else ""
            end = sign.end + _count_own(sign.part, tail, marked.text[sign.end : after.start], after.part)
            yield begin, end, sign.part
            begin = end
    if begin < region.cut or not signs:
        yield begin, region.cut, end_sign.part


def _find_texts(marked: MarkedText, stand_ins: StandIns, region: Region) -> Iterator[_Sign]:
    """Yields the texts of the message in the region."""
    for at, number in marked.slots:
        if region.start <= at < region.cut:
            leaf = stand_ins.slots[number].leaf
            yield _Sign(at, at + 1, stand_ins.leaves[leaf].part, leaf)


def _find_names(marked: MarkedText, stand_ins: StandIns, region: Region) -> Iterator[_Sign]:
    """Yields the names of called functions: a call without arguments has no other text."""
    names = "|".join(map(re.escape, find_called_names(stand_ins.messages[region.message])))
    pattern = re.compile(rf"(?<![\w</|])(?:{names})(?![\w|])")
    for match in pattern.finditer(marked.text, region.start, region.cut) if names else ():
        yield _Sign(match.start(), match.end(), "tool_calls")


def _count_own(part: Part, tail: str, between: str, after: Part) -> int:
    """Counts the characters after a text, up to the next part, that belong to the part of that text.

    `tail` is the rest of the text after its last stand-in.
    """
    size = len(tail) if between.startswith(tail) else 0
    if part == "reasoning":
        closing = _CLOSING.search(between, size)
        if closing:
            return closing.end()
        return size if after == "tool_calls" else len(between)
    return len(between) if part == "tool_calls" else size


def _get_tail(stand_ins: StandIns, leaf: int) -> str:
    """Returns the constant text after the last stand-in of a leaf."""
    parts = stand_ins.leaves[leaf].parts
    last = max(index for index, part in enumerate(parts) if part in stand_ins.numbers)
    return "".join(parts[last + 1 :]).rstrip()
