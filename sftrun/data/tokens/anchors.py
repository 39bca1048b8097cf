"""Anchors: positions of span borders in token ids, counted from special tokens, for many rows at once.

The skeleton of a shape is filled with plain words and encoded once. Each border between two spans is then a fixed
number of tokens away from a special token, with only the template's own text between them. A row of the shape has
its borders at the same distances if it has the same special tokens in the same order, and the same ids between
them and the borders. The other rows take the slow path, by the offsets of every token.
"""

import re
from typing import Any, NamedTuple

import numpy as np

from sftrun.data.masks.skeleton import Skeleton
from sftrun.data.tokens.tokenizer import Tokenizer
from sftrun.types import Rendered, Span

FILLER = "Danube"  # a plain word, which no tokenizer joins with a special token
REACH = 16  # tokens between a special token and a border, at most


class Anchors(NamedTuple):
    """Anchors of one shape. Column 0 of a row is its start; then come its special tokens, and its end.

    `specials` are the ids of the special tokens, `texts` their texts, `span` the span of each. Border `b` is
    `offset[b]` tokens after `column[b]`. The token `fixed_offset[f]` after `fixed_column[f]` must be `fixed_id[f]`.
    """

    specials: Any
    texts: frozenset[str]
    span: Any
    column: Any
    offset: Any
    fixed_column: Any
    fixed_offset: Any
    fixed_id: Any


class SpecialTokens(NamedTuple):
    """The special tokens of a batch: their positions, and for each row the index of its first one and their number."""

    positions: Any
    first: Any
    count: Any


def find_special_tokens(ids: Any, starts: Any, tokenizer: Tokenizer) -> SpecialTokens:
    """Finds the special tokens of a batch; `starts` has one entry more than there are rows."""
    return _group_by_row(np.flatnonzero(tokenizer.is_added(ids)), starts)


def select_tokens(found: SpecialTokens, ids: Any, starts: Any, wanted: Any) -> SpecialTokens:
    """Selects the special tokens with one of the wanted ids."""
    return _group_by_row(found.positions[np.isin(ids[found.positions], wanted)], starts)


def _group_by_row(positions: Any, starts: Any) -> SpecialTokens:
    bounds = np.searchsorted(positions, starts)
    return SpecialTokens(positions, bounds[:-1], np.diff(bounds))


def learn_anchors(skeleton: Skeleton, tokenizer: Tokenizer) -> Anchors | None:
    """Returns the anchors of a shape; None if a border is not next to a special token."""
    count = max(skeleton.slot_order, default=-1) + 1
    text = skeleton.fill([FILLER] * count)
    lengths = [len(FILLER)] * len(skeleton.slot_order)
    slots, at = [], 0
    for piece in skeleton.literals[:-1]:
        at += len(piece)
        slots.append(at)
        at += len(FILLER)
    encoding = tokenizer.encode([text])[0]
    ids = np.asarray(encoding.ids, dtype=np.int64)
    found = _BorderFinder(ids, tokenizer.find_bounds(encoding, text), slots, tokenizer.is_added(ids))
    return found.find_anchors(skeleton.make_spans(text, lengths), tokenizer.added)


class _BorderFinder:
    """The borders of one encoded text; `slots` are the characters at which replaceable texts begin."""

    def __init__(self, ids: Any, bounds: Any, slots: list[int], is_added: Any) -> None:
        self.ids = ids
        self.starts, self.ends = bounds
        self.slots = np.asarray(slots, dtype=np.int64)
        self.special = np.flatnonzero(is_added)
        self.columns = np.concatenate([[0], self.special, [len(ids)]])
        self.fixed: list[tuple[int, int, int]] = []

    def find_anchors(self, spans: list[Span], added: dict[int, str]) -> Anchors | None:
        borders = [self._find_border(span.end) for span in spans[:-1]]
        if None in borders:
            return None
        column, offset = np.array(borders, dtype=np.int64).reshape(-1, 2).T
        fixed = np.array(sorted(set(self.fixed)), dtype=np.int64).reshape(-1, 3).T
        span = np.searchsorted([span.end for span in spans], self.starts[self.special], side="right")
        specials = self.ids[self.special]
        texts = frozenset(added[number] for number in specials.tolist())
        return Anchors(specials, texts, span, column, offset, *fixed)

    def _find_border(self, character: int) -> tuple[int, int] | None:
        token = int(np.searchsorted(self.starts, character))
        if token and self.ends[token - 1] > character:
            return None  # a token straddles it
        before = int(np.searchsorted(self.columns, token, side="right")) - 1
        before = min(before, len(self.columns) - 2)
        for column in (before, before + 1):
            offset = token - int(self.columns[column])
            if abs(offset) <= REACH and self._is_fixed(*sorted((token, int(self.columns[column])))):
                self._fix_ids(column, offset)
                return column, offset
        return None

    def _is_fixed(self, first: int, last: int) -> bool:
        """Returns True if no replaceable text reaches into the tokens `[first, last)`."""
        if first == last:
            return True
        start, end = self.starts[first], self.ends[last - 1]
        return not bool(((self.slots < end) & (self.slots + len(FILLER) > start)).any())

    def _fix_ids(self, column: int, offset: int) -> None:
        begin = int(self.columns[column])
        for step in range(min(offset, 0), max(offset, 0)):
            self.fixed.append((column, step, int(self.ids[begin + step])))


def find_shifts(anchors: Anchors, row: Rendered, pattern: re.Pattern[str], count: int) -> Any:
    """Returns how many tokens later each of the template's special tokens comes in a row with more of them; [specials].

    None if that is ambiguous: a span has special tokens of both, or not all `count` tokens are found.
    """
    matches = (pattern.findall(row.text, span.start, span.end) for span in row.spans)
    counts = [sum(text in anchors.texts for text in found) for found in matches]
    own = np.bincount(anchors.span, minlength=len(counts))
    extra = np.array(counts) - own
    if extra.sum() != count - len(anchors.specials) or (extra[own > 0] != 0).any():
        return None
    return np.concatenate([[0], np.cumsum(extra)])[anchors.span]


def find_borders(anchors: Anchors, batch: tuple[Any, Any, SpecialTokens], rows: Any, shifts: Any) -> tuple[Any, Any]:
    """Returns which rows fit the anchors, and the token positions `[fitting rows, spans + 1]` of their borders.

    `batch` has the ids, the starts and the special tokens of all rows. `shifts` [rows, specials] is how many tokens
    later than in the skeleton each special token comes.
    """
    ids, starts, found = batch
    inner = found.positions[found.first[rows][:, None] + np.arange(len(anchors.specials)) + shifts]
    at = np.concatenate([starts[rows][:, None], inner, starts[rows + 1][:, None]], axis=1)
    fits = (ids[inner] == anchors.specials).all(axis=1)
    fixed = at[:, anchors.fixed_column] + anchors.fixed_offset
    fits &= (ids[np.clip(fixed, 0, len(ids) - 1)] == anchors.fixed_id).all(axis=1)
    cuts = np.concatenate([at[:, :1], at[:, anchors.column] + anchors.offset, at[:, -1:]], axis=1)
    fits &= (np.diff(cuts, axis=1) >= 0).all(axis=1)
    return fits, cuts[fits]
