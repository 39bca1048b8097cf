"""Skeletons: the text that a template writes for one shape of conversation, with slots for the texts.

If a skeleton filled with a conversation's texts equals its direct render, every position in that render is known.
If it does not, the skeleton proves nothing.
"""

import bisect
import copy
import functools
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import msgspec

from sftrun.data.masks import fields
from sftrun.data.masks.regions import Region
from sftrun.data.masks.stand_ins import MarkedText, StandIns
from sftrun.data.masks.survey import count_shared
from sftrun.errors import RowError
from sftrun.types import Part, Rendered, Span


class Tile(NamedTuple):
    """The template of a span: its number of fixed characters and of slots, and the fields of the span."""

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
    """A skeleton: literal texts around slots, and the tiles that its spans are made from.

    `refusal` is the reason why conversations of this shape cannot be trained on; such a skeleton has no tiles.
    """

    def __init__(self, marked: MarkedText) -> None:
        cuts = [start for start, _ in marked.slots]
        self.slot_order = [number for _, number in marked.slots]
        self._set_literals(
            [marked.text[a:b] for a, b in zip([0, *(cut + 1 for cut in cuts)], [*cuts, None], strict=True)]
        )
        self.tiles: list[Tile] = []
        self.refusal: str | None = None
        self.varies = False  # True if rows of this shape may differ in their number of spans

    def _set_literals(self, literals: list[str]) -> None:
        self.literals = literals
        self._frame = [text for literal in literals for text in (literal, "")][:-1]

    def set_tiles(self, tiles: Sequence[Tile]) -> None:
        """Sets the tiles of the text, in order."""
        self.tiles = list(tiles)
        self._span_fields = [(tile.fixed, tile.slots, tile[2:8]) for tile in tiles]
        self.varies = any(tile.left for tile in tiles)
        self._closed: Skeleton | None = None

    def with_flags(self, flags: Sequence[bool | None]) -> "Skeleton":
        """Returns a copy for messages with these `train` flags."""
        other = copy.copy(self)
        other.set_tiles([tile._replace(train=None if tile.message < 0 else flags[tile.message]) for tile in self.tiles])
        return other

    def close(self, eot_token: str) -> "Skeleton":
        """Returns a copy with `eot_token` in the empty ends of turns; itself if there are none."""
        if self._closed is None:
            self._closed = self._fill_ends(eot_token)
        return self._closed

    def _fill_ends(self, eot_token: str) -> "Skeleton":
        literals, tiles, end, added = self.literals.copy(), self.tiles.copy(), 0, 0
        starts = [sum(map(len, literals[:index])) + index for index in range(len(literals))]
        for number, tile in enumerate(self.tiles):
            end += tile.fixed + tile.slots
            if tile.end_of_turn and not tile.fixed:
                index = bisect_right(starts, end) - 1
                at = end - starts[index]
                literals[index] = literals[index][:at] + eot_token + literals[index][at:]
                tiles[number] = tile._replace(fixed=len(eot_token))
                added += 1
        if not added:
            return self
        other = copy.copy(self)
        other._set_literals(literals)
        other.set_tiles(tiles)
        return other

    def adapt(self, text: str, texts: Sequence[str]) -> "Skeleton | None":
        """Returns a copy with another literal in one place, such as another list of tools.

        None if the render differs in more than one place, or in text that is not the template's alone.
        """
        filled = [texts[number] for number in self.slot_order]
        index, start = self._find_difference(text, filled)
        rest = "".join(text for pair in zip(filled[index:], self.literals[index + 1 :], strict=True) for text in pair)
        tile = self._find_tile(index)
        if tile is None or not text.endswith(rest) or len(text) - len(rest) < start:
            return None
        new = text[start : len(text) - len(rest)]
        grown = self.tiles[tile].fixed + len(new) - len(self.literals[index])
        other = copy.copy(self)
        other._set_literals([*self.literals[:index], new, *self.literals[index + 1 :]])
        other.set_tiles([*self.tiles[:tile], self.tiles[tile]._replace(fixed=grown), *self.tiles[tile + 1 :]])
        return other

    def _find_difference(self, text: str, filled: Sequence[str]) -> tuple[int, int]:
        """Returns the index of the first literal that a text does not continue with, and its expected start."""
        start = 0
        for index, (literal, slot) in enumerate(zip(self.literals, filled, strict=False)):
            if not text.startswith(literal + slot, start):
                return index, start
            start += len(literal) + len(slot)
        return len(filled), start

    def _find_tile(self, index: int) -> int | None:
        """Returns the tile that holds a literal from end to end, if it is the template's own text."""
        first = sum(map(len, self.literals[:index])) + index
        last, end = first + len(self.literals[index]), 0
        for number, tile in enumerate(self.tiles):
            end += tile.fixed + tile.slots
            if end >= last:
                return number if tile.message < 0 and end - tile.fixed - tile.slots <= first else None
        return None

    def fill(self, texts: Sequence[str]) -> str:
        """Returns the text with the slots filled."""
        frame = self._frame.copy()
        frame[1::2] = [texts[number] for number in self.slot_order]
        return "".join(frame)

    def match(self, text: str, texts: Sequence[str]) -> list[int] | None:
        """Returns the length of each slot's text in a render; None if the filled skeleton is not the render."""
        if self.fill(texts) == text:
            return [len(texts[number]) for number in self.slot_order]
        return self._match_changed(text, texts)

    def _match_changed(self, text: str, texts: Sequence[str]) -> list[int] | None:
        lengths: list[int] = []
        end = len(self.literals[0])
        if not text.startswith(self.literals[0]):
            return None
        for number, literal in zip(self.slot_order, self.literals[1:], strict=True):
            for variant in _iter_variants(texts[number]):
                if text.startswith(variant, end) and text.startswith(literal, end + len(variant)):
                    lengths.append(len(variant))
                    end += len(variant) + len(literal)
                    break
            else:
                return None
        return lengths if end == len(text) else None

    def make_spans(self, text: str, lengths: Sequence[int]) -> list[Span]:
        """Returns the spans of a matching render."""
        found: list[Span] = []
        start = slot = 0
        for fixed, slots, span_fields in self._span_fields:
            end = start + fixed
            for _ in range(slots):
                end += lengths[slot]
                slot += 1
            found.append(Span(start, end, *span_fields))
            start = end
        return self._split_off_prompt(found, text) if self.varies else found

    def _split_off_prompt(self, spans: list[Span], text: str) -> list[Span]:
        """Removes from generated spans the text that the generation prompt already holds: it may end with `<think>`."""
        found: list[Span] = []
        for span, tile in zip(spans, self.tiles, strict=True):
            cut = span.start + _count_repeated(tile.left, text[span.start : span.end])
            if cut > span.start:
                found.append(Span(span.start, cut, span.message, span.role, train=span.train))
            if cut < span.end or span.end_of_turn:
                found.append(msgspec.structs.replace(span, start=cut))
        return found


def _count_repeated(prompt: str, answer: str) -> int:
    """Counts the characters of an answer that repeat the end of its prompt, such as `<think>`: all of it, or none."""
    size = count_shared(prompt, answer) if prompt else 0
    return size if size >= len(prompt.rstrip()) else 0


def _iter_variants(text: str) -> Iterator[str]:
    """Yields the forms in which templates write a text unchanged: trimmed in some way, or escaped for JSON."""
    yield text
    yield text.strip()
    yield from (text.lstrip(), text.rstrip())
    yield from (text.strip("\n"), text.lstrip("\n"), text.rstrip("\n"))
    yield json.dumps(text, ensure_ascii=False)[1:-1]
    yield json.dumps(text)[1:-1]
    yield repr(text)[1:-1]


def make_rendered(skeleton: Skeleton, text: str, lengths: Sequence[int], eot_token: str | None) -> Rendered:
    """Makes a render with its spans; inserts `eot_token` where the template writes no end of a turn."""
    closed = skeleton.close(eot_token) if eot_token else skeleton
    if eot_token and closed is not skeleton:
        places = [span.start for span in skeleton.make_spans(text, lengths) if span.start == span.end]
        text = _insert(text, places, eot_token)
    if skeleton.varies:
        return Rendered(text, closed.make_spans(text, lengths))
    return Rendered(text, functools.partial(closed.make_spans, text, lengths), closed)


def _insert(text: str, places: Sequence[int], token: str) -> str:
    cuts = [0, *places, len(text)]
    return token.join(text[a:b] for a, b in pairwise(cuts))


TiledStretch = tuple[int, int, Tile]


def make_tiles(marked: MarkedText, stand_ins: StandIns, regions: Sequence[Region], open_ends: bool) -> list[Tile]:
    """Tiles a render with stand-ins: regions, the texts of other messages, and the template's own text.

    With `open_ends`, the template leaves out ends of turns, which become empty tiles.
    """
    stretches = [*_tile_regions(marked, stand_ins, regions), *_tile_other_texts(marked, stand_ins, regions)]
    found: list[Tile] = []
    end = 0
    for start, stop, tile in sorted(stretches, key=lambda stretch: stretch[0]):
        if start < end:
            raise RowError("the template writes the texts of messages into one another")
        found += [_with_size(marked, end, start, Tile(0, 0, -1, "template")), _with_size(marked, start, stop, tile)]
        end = stop
    found.append(_with_size(marked, end, len(marked.text), Tile(0, 0, -1, "template")))
    return [tile for tile in found if tile.fixed or tile.slots or (tile.end_of_turn and open_ends)]


def _tile_regions(marked: MarkedText, stand_ins: StandIns, regions: Sequence[Region]) -> Iterator[TiledStretch]:
    for region in regions:
        tile = Tile(0, 0, region.message, stand_ins.role(region.message), generated=True)
        for start, end, part in fields.cut_region(marked, stand_ins, region):
            left = region.left if start == region.start else ""
            yield start, end, tile._replace(part=part, left=left)
        yield region.cut, region.end, tile._replace(end_of_turn=True)


def _tile_other_texts(marked: MarkedText, stand_ins: StandIns, regions: Sequence[Region]) -> Iterator[TiledStretch]:
    """Yields the texts outside regions; the stretches of one text are joined, with the text between them."""
    inside = {region.message for region in regions}
    first = end = -1
    for index, (start, number) in enumerate(marked.slots):
        slot = stand_ins.slots[number]
        if slot.message in inside:
            continue
        first, end = (start if first < 0 else first), start + 1
        after = marked.slots[index + 1][1] if index + 1 < len(marked.slots) else -1
        if after != number + 1 or stand_ins.slots[after].leaf != slot.leaf:
            yield first, end, Tile(0, 0, slot.message, stand_ins.role(slot.message))
            first = -1


def _with_size(marked: MarkedText, start: int, end: int, tile: Tile) -> Tile:
    slots = bisect.bisect_left(marked.slots, (end,)) - bisect.bisect_left(marked.slots, (start,))
    return tile._replace(fixed=end - start - slots, slots=slots)
