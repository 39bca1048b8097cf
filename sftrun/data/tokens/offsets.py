"""One text at a time, by the offsets of its tokens: which of them carry loss, and what they hold."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from sftrun.data.tokens.tokenizer import Tokenizer
from sftrun.kinds import Masker
from sftrun.types import Rendered, Span

if TYPE_CHECKING:
    from tokenizers import Encoding

Stretch = tuple[int, int]


class Counts(msgspec.Struct):
    """What samples hold: tokens and trained tokens per role, and what became of turn ends and borders.

    Of `turns` trained turns, `ended` have their end-of-turn trained and `cut` lost it to truncation; `straddling`
    tokens lie partly in a trained span.
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
        """Adds all that another one counted."""
        for role, tokens in other.tokens.items():
            self.add(role, tokens, other.trained[role])
        for name in ("turns", "ended", "cut", "straddling"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Tokens(NamedTuple):
    """One text as tokens: ids, whether each is trained and the index of the span that it begins in; [tokens].

    `ends` [spans] says which spans are the ends of trained turns.
    """

    ids: Any
    trained: Any
    span: Any
    spans: list[Span]
    ends: list[bool]
    straddling: int


def stretches(masker: Masker, rendered: Rendered) -> list[Stretch]:
    """The stretches `[start, end)` of a rendered text that a masker has trained, in order.

    A turn of whose text nothing is left by `narrow` has no trained end either.
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


def tokens(
    rendered: Rendered, chosen: Sequence[Stretch], encoding: "Encoding", tokenizer: Tokenizer
) -> tuple[Tokens, tuple[Any, Any]]:
    """One text by the offsets of its tokens, trained where `chosen` says, and these offsets.

    A token is trained when every character of it lies in a chosen stretch. One that straddles the start of an
    answer is not: its first characters belong to the generation prompt, so the model never emits it.
    """
    starts, ends = tokenizer.bounds(encoding, rendered.text)
    marked = np.zeros(len(rendered.text) + 1, dtype=np.int64)
    for start, end in chosen:
        marked[start + 1 : end + 1] = 1
    inside = np.cumsum(marked)
    covered = inside[ends] - inside[starts]
    trained = (covered == ends - starts) & (ends > starts)
    span = np.searchsorted([span.end for span in rendered.spans], starts, side="right")
    span = np.minimum(span, len(rendered.spans) - 1)
    straddling = int(((covered > 0) & ~trained).sum())
    ids = np.asarray(encoding.ids, dtype=np.int32)
    turns = [
        each.end_of_turn and int(inside[each.end] - inside[each.start]) == each.end - each.start
        for each in rendered.spans
    ]
    return Tokens(ids, trained, span, rendered.spans, turns, straddling), (starts, ends)


def counted(row: Tokens, first: int, last: int) -> Counts:
    """What the tokens `[first, last)` of a row hold."""
    counts = Counts({}, {}, straddling=row.straddling)
    size = len(row.spans)
    span, trained = row.span[first:last], row.trained[first:last]
    here = np.bincount(span, minlength=size)
    learned = np.bincount(span, weights=trained, minlength=size).astype(int)
    whole = np.bincount(row.span, minlength=size)
    for index, each in enumerate(row.spans):
        counts.add(each.role, int(here[index]), int(learned[index]))
        if row.ends[index]:
            counts.turns += 1
            counts.ended += int(learned[index] == whole[index] > 0)
            counts.cut += int(here[index] < whole[index])
    return counts


def pieces(text: str, bounds: tuple[Any, Any], trained: Any) -> list[tuple[str, bool]]:
    """The text of tokens cut where training starts and stops, each piece with whether it is trained."""
    starts, ends = bounds
    cuts: list[tuple[str, bool]] = []
    if not len(starts):
        return cuts
    changes = np.flatnonzero(np.diff(trained)) + 1
    edges = [int(starts[0]), *(int(starts[index]) for index in changes), int(ends[-1])]
    flags = [bool(trained[0]), *(bool(trained[index]) for index in changes)]
    for start, end, flag in zip(edges, edges[1:], flags, strict=False):
        if end > start:
            cuts.append((text[start:end], flag))
    return cuts
