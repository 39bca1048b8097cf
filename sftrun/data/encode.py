"""Rendered text and chosen spans to samples: which token ids carry loss."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from sftrun.types import Masker, Rendered, Sample

if TYPE_CHECKING:
    from tokenizers import Encoding


class Counts(msgspec.Struct):
    """What a sample holds: tokens and trained tokens per role, and what became of turn ends and boundaries.

    Of `turns` trained turns, `turns_ended` have their end-of-turn trained and `turns_cut` lost it to truncation;
    `straddling` tokens lie partly in a trained span.
    """

    tokens: dict[str, int]
    trained: dict[str, int]
    turns: int = 0
    turns_ended: int = 0
    turns_cut: int = 0
    straddling: int = 0


Stretch = tuple[int, int]


def stretches(masker: Masker, rendered: Rendered) -> list[Stretch]:
    """The stretches `[start, end)` of a rendered text that a masker has trained, in order."""
    narrow = getattr(masker, "narrow", None)
    found: list[Stretch] = []
    for span, chosen in zip(rendered.spans, masker.choose(rendered.spans), strict=True):
        if chosen and narrow and not span.end_of_turn:
            inner = narrow(rendered.text[span.start : span.end])
            found += [(span.start + start, span.start + end) for start, end in inner]
        elif chosen:
            found.append((span.start, span.end))
    return found


def to_sample(
    rendered: Rendered, chosen: Sequence[Stretch], encoding: "Encoding", origin: str
) -> tuple[Sample, Counts]:
    """The sample of one conversation, and what it counts; `chosen` are the stretches to train.

    A token is trained when every character of it lies in a chosen span. One that straddles the start of an
    answer is not: its first characters belong to the generation prompt, so the model never emits it.
    """
    marked = np.zeros(len(rendered.text), dtype=np.int64)
    for start, end in chosen:
        marked[start:end] = 1
    inside = np.concatenate([[0], np.cumsum(marked)])
    offsets = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    starts, ends = offsets[:, 0], offsets[:, 1]
    covered = inside[ends] - inside[starts]
    trained = (covered == ends - starts) & (ends > starts)
    sample = Sample(encoding.ids, trained.astype(int).tolist(), origin)
    counts = _count(rendered, marked, starts, trained, int(ends.max(initial=0)))
    counts.straddling = int(((covered > 0) & ~trained).sum())
    return sample, counts


def _count(rendered: Rendered, marked: Any, starts: Any, trained: Any, reach: int) -> Counts:
    of_token = np.searchsorted([span.end for span in rendered.spans], starts, side="right")
    of_token = np.minimum(of_token, len(rendered.spans) - 1)
    all_tokens = np.bincount(of_token, minlength=len(rendered.spans))
    trained_tokens = np.bincount(of_token, weights=trained, minlength=len(rendered.spans)).astype(int)
    counts = Counts({}, {})
    for index, span in enumerate(rendered.spans):
        counts.tokens[span.role] = counts.tokens.get(span.role, 0) + int(all_tokens[index])
        counts.trained[span.role] = counts.trained.get(span.role, 0) + int(trained_tokens[index])
        if span.end_of_turn and marked[span.start : span.end].all():
            counts.turns += 1
            counts.turns_ended += int(trained_tokens[index] == all_tokens[index] > 0)
            counts.turns_cut += int(span.end > reach)
    return counts


def pieces(text: str, offsets: Sequence[tuple[int, int]], trained: Sequence[int]) -> list[tuple[str, bool]]:
    """The text cut where training starts and stops, each piece with whether it is trained."""
    text = text[: offsets[-1][1]] if offsets else ""
    cuts: list[tuple[str, bool]] = []
    begin, now = 0, bool(trained[0]) if trained else False
    for (start, _), flag in zip(offsets, trained, strict=False):
        if bool(flag) != now:
            cuts.append((text[begin:start], now))
            begin, now = start, bool(flag)
    cuts.append((text[begin:], now))
    return [cut for cut in cuts if cut[0]]
