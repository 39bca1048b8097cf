"""Skeletons: what a template writes for one shape of conversation, with slots for the texts.

A skeleton filled with a conversation's texts must equal its direct render. Where it does, every position in
that render is known; where it does not, the skeleton says nothing about it.
"""

import copy
import functools
import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from sftrun.data.masks import fields
from sftrun.data.masks.regions import Region
from sftrun.data.masks.stand_ins import Marked, Probe
from sftrun.data.masks.survey import shared
from sftrun.errors import RowError
from sftrun.types import Part, Rendered, Span


class Tile(NamedTuple):
    """A span to be: its fixed characters and its number of slots, and what the span will say."""

    fixed: int
    slots: int
    message: int
    role: str
    generated: bool = False
    end_of_turn: bool = False
    part: Part = "content"
    train: bool | None = None
    left: str = ""


class Skeleton:
    """The fixed text around slots, and the tiles that its spans come from.

    `refusal` says why conversations of this shape cannot be trained on; there are no tiles then.
    """

    def __init__(self, marked: Marked) -> None:
        cuts = [start for start, _ in marked.slots]
        self.order = [number for _, number in marked.slots]
        self._set([marked.text[a:b] for a, b in zip([0, *(cut + 1 for cut in cuts)], [*cuts, None], strict=True)])
        self.tiles: list[Tile] = []
        self.refusal: str | None = None
        self.varies = False  # whether rows of this shape differ in their number of spans

    def _set(self, pieces: list[str]) -> None:
        self.pieces = pieces
        self._frame = [text for piece in pieces for text in (piece, "")][:-1]

    def add(self, tiles: Sequence[Tile]) -> None:
        """Takes the tiles of the text, in order."""
        self.tiles = list(tiles)
        self._said = [(tile.fixed, tile.slots, tile[2:8]) for tile in tiles]
        self.varies = any(tile.left for tile in tiles)

    def flagged(self, flags: Sequence[bool | None]) -> "Skeleton":
        """The same for messages that say whether they are trained."""
        other = copy.copy(self)
        other.add([tile._replace(train=None if tile.message < 0 else flags[tile.message]) for tile in self.tiles])
        return other

    def turned(self, text: str, texts: Sequence[str]) -> "Skeleton | None":
        """The same with other words of the template in one place, as where it lists the tools of a row.

        None where the render is not that: where more differs, or the place is not the template's alone.
        """
        filled = [texts[number] for number in self.order]
        index, start = self._shared(text, filled)
        rest = "".join(text for pair in zip(filled[index:], self.pieces[index + 1 :], strict=True) for text in pair)
        tile = self._around(index)
        if tile is None or not text.endswith(rest) or len(text) - len(rest) < start:
            return None
        new = text[start : len(text) - len(rest)]
        grown = self.tiles[tile].fixed + len(new) - len(self.pieces[index])
        other = copy.copy(self)
        other._set([*self.pieces[:index], new, *self.pieces[index + 1 :]])
        other.add([*self.tiles[:tile], self.tiles[tile]._replace(fixed=grown), *self.tiles[tile + 1 :]])
        return other

    def _shared(self, text: str, filled: Sequence[str]) -> tuple[int, int]:
        """The first piece that a text does not go on with, and where it would begin."""
        start = 0
        for index, (piece, slot) in enumerate(zip(self.pieces, filled, strict=False)):
            if not text.startswith(piece + slot, start):
                return index, start
            start += len(piece) + len(slot)
        return len(filled), start

    def _around(self, index: int) -> int | None:
        """The tile that holds a piece from end to end, if it is the template's own text."""
        first = sum(map(len, self.pieces[:index])) + index
        last, end = first + len(self.pieces[index]), 0
        for number, tile in enumerate(self.tiles):
            end += tile.fixed + tile.slots
            if end >= last:
                return number if tile.message < 0 and end - tile.fixed - tile.slots <= first else None
        return None

    def fill(self, texts: Sequence[str]) -> str:
        """The text with the slots filled."""
        frame = self._frame.copy()
        frame[1::2] = [texts[number] for number in self.order]
        return "".join(frame)

    def fit(self, text: str, texts: Sequence[str]) -> list[int] | None:
        """The length of each slot's text in a render; None if the skeleton does not account for the render."""
        if self.fill(texts) == text:
            return [len(texts[number]) for number in self.order]
        return self._fit_changed(text, texts)

    def _fit_changed(self, text: str, texts: Sequence[str]) -> list[int] | None:
        lengths: list[int] = []
        end = len(self.pieces[0])
        if not text.startswith(self.pieces[0]):
            return None
        for number, piece in zip(self.order, self.pieces[1:], strict=True):
            for variant in _variants(texts[number]):
                if text.startswith(variant, end) and text.startswith(piece, end + len(variant)):
                    lengths.append(len(variant))
                    end += len(variant) + len(piece)
                    break
            else:
                return None
        return lengths if end == len(text) else None

    def spans(self, text: str, lengths: Sequence[int]) -> list[Span]:
        """The spans of a render that the skeleton fits."""
        found: list[Span] = []
        start = slot = 0
        for fixed, slots, said in self._said:
            end = start + fixed
            for _ in range(slots):
                end += lengths[slot]
                slot += 1
            found.append(Span(start, end, *said))
            start = end
        return self._without_prompt(found, text) if self.varies else found

    def _without_prompt(self, spans: list[Span], text: str) -> list[Span]:
        """Takes from generated spans what the generation prompt already holds: it may end with `<think>`."""
        found: list[Span] = []
        for span, tile in zip(spans, self.tiles, strict=True):
            cut = span.start + shared(tile.left, text[span.start : span.end]) if tile.left else span.start
            if cut > span.start:
                found.append(Span(span.start, cut, span.message, span.role, train=span.train))
            if cut < span.end or span.end_of_turn:
                found.append(msgspec.structs.replace(span, start=cut))
        return found


def _variants(text: str) -> Iterator[str]:
    """What templates make of a text without changing it: trimmed in some way, or escaped for JSON."""
    yield text
    yield text.strip()
    yield from (text.lstrip(), text.rstrip())
    yield from (text.strip("\n"), text.lstrip("\n"), text.rstrip("\n"))
    yield json.dumps(text, ensure_ascii=False)[1:-1]


def rendered(skeleton: Skeleton, text: str, lengths: Sequence[int], eot_token: str | None) -> Rendered:
    """A render with its spans; where a turn has an empty end, `eot_token` is put in."""
    if eot_token is None and not skeleton.varies:
        return Rendered(text, functools.partial(skeleton.spans, text, lengths), skeleton)
    spans = skeleton.spans(text, lengths)
    gap = next((index for index, span in enumerate(spans) if span.start == span.end), None) if eot_token else None
    if gap is None or eot_token is None:
        return Rendered(text, spans, None if skeleton.varies else skeleton)
    at, size = spans[gap].start, len(eot_token)
    closing = msgspec.structs.replace(spans[gap], end=at + size)
    after = [msgspec.structs.replace(span, start=span.start + size, end=span.end + size) for span in spans[gap + 1 :]]
    return Rendered(text[:at] + eot_token + text[at:], [*spans[:gap], closing, *after])


Stretch = tuple[int, int, Tile]


def tiles(marked: Marked, probe: Probe, regions: Sequence[Region], open_end: bool) -> list[Tile]:
    """Tiles of a probe's render: regions, the texts of other messages, and the template's own text.

    With `open_end`, nothing ends the turn of the last message: its end is an empty tile.
    """
    last = len(probe.messages) - 1 if open_end else None
    stretches = [*_generated(marked, probe, regions), *_others(marked, probe, regions)]
    found: list[Tile] = []
    end = 0
    for start, stop, tile in sorted(stretches, key=lambda stretch: stretch[0]):
        if start < end:
            raise RowError("the template writes the texts of messages into one another")
        found += [_sized(marked, end, start, Tile(0, 0, -1, "template")), _sized(marked, start, stop, tile)]
        end = stop
    found.append(_sized(marked, end, len(marked.text), Tile(0, 0, -1, "template")))
    return [tile for tile in found if tile.fixed or tile.slots or (tile.end_of_turn and tile.message == last)]


def _generated(marked: Marked, probe: Probe, regions: Sequence[Region]) -> Iterator[Stretch]:
    for region in regions:
        tile = Tile(0, 0, region.message, probe.role(region.message), generated=True)
        for start, end, part in fields.cut(marked, probe, region):
            left = region.left if start == region.start else ""
            yield start, end, tile._replace(part=part, left=left)
        yield region.cut, region.end, tile._replace(end_of_turn=True)


def _others(marked: Marked, probe: Probe, regions: Sequence[Region]) -> Iterator[Stretch]:
    """The texts outside regions; the stretches of one text are joined, with what is between them."""
    inside = {region.message for region in regions}
    first = end = -1
    for index, (start, number) in enumerate(marked.slots):
        slot = probe.slots[number]
        if slot.message in inside:
            continue
        first, end = (start if first < 0 else first), start + 1
        after = marked.slots[index + 1][1] if index + 1 < len(marked.slots) else -1
        if after != number + 1 or probe.slots[after].leaf != slot.leaf:
            yield first, end, Tile(0, 0, slot.message, probe.role(slot.message))
            first = -1


def _sized(marked: Marked, start: int, end: int, tile: Tile) -> Tile:
    slots = sum(start <= at < end for at, _ in marked.slots)
    return tile._replace(fixed=end - start - slots, slots=slots)
