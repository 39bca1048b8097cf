"""Masks by token offsets, one text at a time: which tokens carry loss, and counts of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from sftrun.data.tokens.borders import Joined, find_joined
from sftrun.data.tokens.tokenizer import Tokenizer
from sftrun.kinds import Masker
from sftrun.types import Rendered, Span

if TYPE_CHECKING:
    from tokenizers import Encoding

Stretch = tuple[int, int]


class Counts(msgspec.Struct):
    """Counts of samples: tokens and trained tokens per role, ends of turns, and tokens at borders.

    Of `turns` trained turns, `ended` have a trained end-of-turn token and `cut` lost it to truncation. `straddling`
    tokens lie partly in a trained stretch.
    """

    tokens: dict[str, int] = {}
    trained: dict[str, int] = {}
    turns: int = 0
    ended: int = 0
    cut: int = 0
    straddling: int = 0

    def add(self, role: str, tokens: int, trained: int) -> None:
        """Adds tokens of one role."""
        self.tokens[role] = self.tokens.get(role, 0) + tokens
        self.trained[role] = self.trained.get(role, 0) + trained

    def merge(self, other: "Counts") -> None:
        """Adds the counts of another object."""
        for role, tokens in other.tokens.items():
            self.add(role, tokens, other.trained[role])
        for name in ("turns", "ended", "cut", "straddling"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


class TokenizedText(NamedTuple):
    """One text as tokens: ids, trained flags, and the index of the span in which each token begins; [tokens].

    `ends` [spans] marks the spans that end trained turns. `joined` is the worst of the `straddling` tokens.
    """

    ids: Any
    trained: Any
    span: Any
    spans: list[Span]
    ends: list[bool]
    straddling: int
    joined: Joined | None = None


def choose_stretches(masker: Masker, rendered: Rendered) -> list[Stretch]:
    """Returns the stretches `[start, end)` of a rendered text that a masker trains, in order.

    A turn in whose text `narrow` leaves nothing has no trained end either.
    """
    narrow = getattr(masker, "narrow", None)
    chosen = [span for span, flag in zip(rendered.spans, masker.choose(rendered.spans), strict=True) if flag]
    if narrow is None:
        return [(span.start, span.end) for span in chosen]
    texts = [span for span in chosen if not span.end_of_turn and span.end > span.start]
    inner = {span: [*narrow(rendered.text[span.start : span.end])] for span in texts}
    empty = {span.message for span in texts} - {span.message for span, found in inner.items() if found}
    kept: list[Stretch] = []
    for span in chosen:
        if span in inner:
            kept += [(span.start + start, span.start + end) for start, end in inner[span]]
        elif span.message not in empty:
            kept.append((span.start, span.end))
    return kept


def mark_tokens(
    rendered: Rendered, chosen: Sequence[Stretch], encoding: "Encoding", tokenizer: Tokenizer
) -> tuple[TokenizedText, tuple[Any, Any]]:
    """Marks the tokens of one text that lie in chosen stretches; returns them and their character offsets.

    A token is trained if every character of it lies in a chosen stretch. A token that straddles the start of an
    answer is not trained: its first characters belong to the generation prompt, so the model never emits it.
    """
    starts, stops = tokenizer.find_bounds(encoding, rendered.text)
    marked = np.zeros(len(rendered.text) + 1, dtype=np.int64)
    for start, end in chosen:
        marked[start + 1 : end + 1] = 1
    inside = np.cumsum(marked)
    covered = inside[stops] - inside[starts]
    trained = (covered == stops - starts) & (stops > starts)
    span = np.searchsorted([span.end for span in rendered.spans], starts, side="right")
    span = np.minimum(span, len(rendered.spans) - 1)
    straddling = np.flatnonzero((covered > 0) & ~trained)
    ids = np.asarray(encoding.ids, dtype=np.int32)
    ends = [
        each.end_of_turn and int(inside[each.end] - inside[each.start]) == each.end - each.start
        for each in rendered.spans
    ]
    joined = _find_worst(rendered, [(int(starts[at]), int(stops[at])) for at in straddling], inside, span[trained])
    return TokenizedText(ids, trained, span, rendered.spans, ends, len(straddling), joined), (starts, stops)


def _find_worst(rendered: Rendered, tokens: Sequence[Stretch], inside: Any, trained_spans: Any) -> Joined | None:
    """Describes the first token that straddles a border, or the first with which a message loses all of its text."""
    if not tokens:
        return None
    spans = [rendered.spans[index] for index in np.unique(trained_spans)]
    kept = {span.message for span in spans if not span.end_of_turn}
    found = [find_joined(rendered, token, inside, kept) for token in tokens]
    return next((each for each in found if each.loses_all), found[0])


def count_tokens(row: TokenizedText, first: int, last: int) -> Counts:
    """Counts the tokens `[first, last)` of a row."""
    counts = Counts({}, {}, straddling=row.straddling)
    size = len(row.spans)
    span, trained = row.span[first:last], row.trained[first:last]
    tokens_here = np.bincount(span, minlength=size)
    trained_here = np.bincount(span, weights=trained, minlength=size).astype(int)
    tokens_in_all = np.bincount(row.span, minlength=size)
    for index, each in enumerate(row.spans):
        counts.add(each.role, int(tokens_here[index]), int(trained_here[index]))
        if row.ends[index]:
            counts.turns += 1
            counts.ended += int(trained_here[index] == tokens_in_all[index] > 0)
            counts.cut += int(tokens_here[index] < tokens_in_all[index])
    return counts


def cut_text(text: str, bounds: tuple[Any, Any], trained: Any) -> list[tuple[str, bool]]:
    """Cuts the text of tokens at each change of the trained flag; returns the pieces with their flags."""
    starts, ends = bounds
    pieces: list[tuple[str, bool]] = []
    if not len(starts):
        return pieces
    changes = np.flatnonzero(np.diff(trained)) + 1
    edges = [int(starts[0]), *(int(starts[index]) for index in changes), int(ends[-1])]
    flags = [bool(trained[0]), *(bool(trained[index]) for index in changes)]
    for start, end, flag in zip(edges, edges[1:], flags, strict=False):
        if end > start:
            pieces.append((text[start:end], flag))
    return pieces
