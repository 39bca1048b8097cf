"""Anchors: where the spans of a shape are in token ids, counted from special tokens, for many rows at once.

A shape's skeleton is filled with plain words and encoded once. Each border between two spans is then so many
tokens after (or before) a special token, with nothing but the template's own text between them. In a row of the
shape the same special tokens in the same order, and the same ids between them and the borders, prove that the
borders are there too. Rows without that proof are for the slow way, by the offsets of every token.
"""

import re
from typing import Any, NamedTuple

import numpy as np

from sftrun.data.masks.skeleton import Skeleton
from sftrun.data.tokens.tokenizer import Tokenizer
from sftrun.types import Rendered, Span

FILLER = "Danube"
REACH = 16  # tokens between a special token and a border


class Anchors(NamedTuple):
    """Borders of one shape. Column 0 of a row's places is its start, then its special tokens, then its end.

    `specials` are the ids to be met, `texts` their texts, and `span` the span of each; border `b` is `offset[b]`
    tokens after place `column[b]`; the token `fixed_offset[f]` after place `fixed_column[f]` must be `fixed_id[f]`.
    """

    specials: Any
    texts: frozenset[str]
    span: Any
    column: Any
    offset: Any
    fixed_column: Any
    fixed_offset: Any
    fixed_id: Any


class Places(NamedTuple):
    """The special tokens of a batch: their positions, and for each row the index of its first and their number."""

    positions: Any
    first: Any
    count: Any


def places(ids: Any, starts: Any, tokenizer: Tokenizer) -> Places:
    """Finds the special tokens of a batch; `starts` has one entry more than there are rows."""
    return _of_rows(np.flatnonzero(tokenizer.is_added(ids)), starts)


def only(found: Places, ids: Any, starts: Any, wanted: Any) -> Places:
    """Those of the special tokens that are among the wanted ones."""
    return _of_rows(found.positions[np.isin(ids[found.positions], wanted)], starts)


def _of_rows(positions: Any, starts: Any) -> Places:
    bounds = np.searchsorted(positions, starts)
    return Places(positions, bounds[:-1], np.diff(bounds))


def learn(skeleton: Skeleton, tokenizer: Tokenizer) -> Anchors | None:
    """The anchors of a shape; None where a border is not beside a special token."""
    count = max(skeleton.order, default=-1) + 1
    text = skeleton.fill([FILLER] * count)
    lengths = [len(FILLER)] * len(skeleton.order)
    slots, at = [], 0
    for piece in skeleton.pieces[:-1]:
        at += len(piece)
        slots.append(at)
        at += len(FILLER)
    encoding = tokenizer.encode([text])[0]
    ids = np.asarray(encoding.ids, dtype=np.int64)
    found = _Finder(ids, tokenizer.bounds(encoding, text), slots, tokenizer.is_added(ids))
    return found.anchors(skeleton.spans(text, lengths), tokenizer.added)


class _Finder:
    """Looks for the borders of one encoded text; `slots` are the characters at which replaceable texts begin."""

    def __init__(self, ids: Any, bounds: Any, slots: list[int], is_added: Any) -> None:
        self.ids = ids
        self.starts, self.ends = bounds
        self.slots = np.asarray(slots, dtype=np.int64)
        self.special = np.flatnonzero(is_added)
        self.columns = np.concatenate([[0], self.special, [len(ids)]])
        self.fixed: list[tuple[int, int, int]] = []

    def anchors(self, spans: list[Span], added: dict[int, str]) -> Anchors | None:
        borders = [self._border(span.end) for span in spans[:-1]]
        if None in borders:
            return None
        column, offset = np.array(borders, dtype=np.int64).reshape(-1, 2).T
        fixed = np.array(sorted(set(self.fixed)), dtype=np.int64).reshape(-1, 3).T
        span = np.searchsorted([span.end for span in spans], self.starts[self.special], side="right")
        specials = self.ids[self.special]
        texts = frozenset(added[number] for number in specials.tolist())
        return Anchors(specials, texts, span, column, offset, *fixed)

    def _border(self, character: int) -> tuple[int, int] | None:
        token = int(np.searchsorted(self.starts, character))
        if token and self.ends[token - 1] > character:
            return None  # a token straddles it
        before = int(np.searchsorted(self.columns, token, side="right")) - 1
        before = min(before, len(self.columns) - 2)
        for column in (before, before + 1):
            offset = token - int(self.columns[column])
            if abs(offset) <= REACH and self._is_fixed(*sorted((token, int(self.columns[column])))):
                self._fix(column, offset)
                return column, offset
        return None

    def _is_fixed(self, first: int, last: int) -> bool:
        """Whether no replaceable text begins or goes on in the tokens `[first, last)`."""
        if first == last:
            return True
        start, end = self.starts[first], self.ends[last - 1]
        return not bool(((self.slots < end) & (self.slots + len(FILLER) > start)).any())

    def _fix(self, column: int, offset: int) -> None:
        begin = int(self.columns[column])
        for step in range(min(offset, 0), max(offset, 0)):
            self.fixed.append((column, step, int(self.ids[begin + step])))


def shift(anchors: Anchors, row: Rendered, pattern: re.Pattern[str], count: int) -> Any:
    """By how much the template's own special tokens come later in a row whose texts hold the same ones; [specials].

    None where it cannot be told: a span has both, or not all of the `count` tokens are accounted for.
    """
    all_found = (pattern.findall(row.text, span.start, span.end) for span in row.spans)
    there = [sum(text in anchors.texts for text in found) for found in all_found]
    own = np.bincount(anchors.span, minlength=len(there))
    typed = np.array(there) - own
    if typed.sum() != count - len(anchors.specials) or (typed[own > 0] != 0).any():
        return None
    return np.concatenate([[0], np.cumsum(typed)])[anchors.span]


def borders(anchors: Anchors, batch: tuple[Any, Any, Places], rows: Any, shifts: Any) -> tuple[Any, Any]:
    """Which of the rows the anchors fit, and token positions `[fitting rows, spans + 1]` of their spans' borders.

    `batch` has the ids, the starts and the special tokens of all rows; `shifts` [rows, specials] is how much later
    than in the skeleton each special token comes.
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
