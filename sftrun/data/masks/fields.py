"""The parts of an answer: which of its text is reasoning, which is content, and which calls tools."""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from sftrun.data.masks.regions import Region, called
from sftrun.data.masks.stand_ins import Leaf, Marked, Probe
from sftrun.types import Part

_CLOSING = re.compile(  # `</think>`, `[/THINK]`, `<|END_THINKING|>`, `<|eom|>`, `<channel|>`
    r"(?:</[^<>\s]+>|\[/[^\[\]\s]+\]|<[^<>\s]*(?:end|eo[mst])[^<>\s]*>|<[^<>|\s]+\|>)\s*", re.IGNORECASE
)


class _Sign(NamedTuple):
    """Text `[start, end)` of which it is known to which part it belongs; `tail` is what of it comes after `end`."""

    start: int
    end: int
    part: Part
    tail: str = ""


def cut(marked: Marked, probe: Probe, region: Region) -> Iterator[tuple[int, int, Part]]:
    """Tiles a region, up to its end of turn, with the parts of its message.

    What the template writes between the texts of two parts belongs to the second, but for the mark that closes
    reasoning and the white space after it, and for what ends a call.
    """
    signs = sorted([*_texts(marked, probe, region), *_names(marked, probe, region)])
    begin, last = region.start, signs[-1].part if signs else "content"
    end_sign = _Sign(region.cut, region.cut, "content" if last == "reasoning" else last)
    for sign, after in pairwise([*signs, end_sign]):
        if sign.part != after.part:
            end = sign.end + _own(sign, marked.text[sign.end : after.start], after.part)
            yield begin, end, sign.part
            begin = end
    if begin < region.cut or not signs:
        yield begin, region.cut, end_sign.part


def _texts(marked: Marked, probe: Probe, region: Region) -> Iterator[_Sign]:
    for at, number in marked.slots:
        if region.start <= at < region.cut:
            leaf = probe.leaves[probe.slots[number].leaf]
            yield _Sign(at, at + 1, leaf.part, _tail(leaf, probe))


def _names(marked: Marked, probe: Probe, region: Region) -> Iterator[_Sign]:
    """The names of called functions: a call without arguments has no text of its own."""
    names = "|".join(map(re.escape, called(probe.messages[region.message])))
    pattern = re.compile(rf"(?<![\w</|])(?:{names})(?![\w|])")
    for match in pattern.finditer(marked.text, region.start, region.cut) if names else ():
        yield _Sign(match.start(), match.end(), "tool_calls")


def _own(sign: _Sign, between: str, after: Part) -> int:
    """How much of what comes after a text, up to the next part, belongs to the part of that text."""
    size = len(sign.tail) if between.startswith(sign.tail) else 0
    if sign.part == "reasoning":
        closing = _CLOSING.search(between, size)
        if closing:
            return closing.end()
        return size if after == "tool_calls" else len(between)
    return len(between) if sign.part == "tool_calls" else size


def _tail(leaf: Leaf, probe: Probe) -> str:
    """What stands in a probe of a text after its last stand-in."""
    last = max(index for index, part in enumerate(leaf.parts) if part in probe.numbers)
    return "".join(leaf.parts[last + 1 :]).rstrip()
