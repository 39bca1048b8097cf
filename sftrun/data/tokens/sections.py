"""Sections: what stands alike in many rows between special tokens, a system prompt say, is encoded once a batch.

A tokenizer cuts a text at its added tokens before all else, and encodes each section between them as if the
others were not there; of its place it knows only whether it begins the text. So a run of sections, from one
added token to another, has the same ids wherever it stands. In the texts of a batch each such run is replaced
by an added token that none of them has, and in their ids that token by the ids of the run.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from sftrun.data.tokens.tokenizer import Tokenizer

LOOKED_AT = 8  # rows of a batch, in which a section must stand twice
RUNS = 4  # replaced in a batch: each is looked for in every row


class Replaced(NamedTuple):
    """A run that a mark stands for in a batch, so many times."""

    mark: str
    run: str
    times: int


class Sections:
    """Encodes batches of texts with one tokenizer; ids alone, for these offsets would mean nothing."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._ids: dict[str, Any] = {}

    def read(self, texts: Sequence[str]) -> tuple[Any, Any]:
        """Ids of texts, end to end, and where each starts; [tokens] and [texts + 1]."""
        marked, replaced, left = texts, [], sum(map(len, texts))
        for run, mark in zip(self._runs(texts), self._marks(texts), strict=False):
            marked = [text.replace(run, mark) for text in marked]
            before, left = left, sum(map(len, marked))
            replaced.append(Replaced(mark, run, (before - left) // (len(run) - len(mark))))
        ids, starts = self._encoded(marked)
        found = [np.flatnonzero(ids == self.tokenizer.engine.token_to_id(each.mark)) for each in replaced]
        if any(len(places) != each.times for places, each in zip(found, replaced, strict=True)):
            return self._encoded(texts)  # a mark that stands for other text too, as an unknown token does
        return _expanded(ids, starts, found, [self._known(each.run) for each in replaced])

    def _encoded(self, texts: Sequence[str]) -> tuple[Any, Any]:
        lists = [encoding.ids for encoding in self.tokenizer.encode_ids(texts)]
        starts = np.zeros(len(lists) + 1, dtype=np.int64)
        np.cumsum([len(each) for each in lists], out=starts[1:])
        return np.fromiter(chain.from_iterable(lists), dtype=np.int32, count=int(starts[-1])), starts

    def _known(self, run: str) -> Any:
        if run not in self._ids:
            self._ids[run] = np.array(self.tokenizer.encode_ids([run])[0].ids, dtype=np.int32)
        return self._ids[run]

    def _runs(self, texts: Sequence[str]) -> list[str]:
        """The longest runs of sections that several of the texts have, the longest first."""
        if not self._cuts or len(texts) < LOOKED_AT:
            return []
        cut = [self._pattern.split(text) for text in texts[:: len(texts) // LOOKED_AT]]
        seen = Counter(chain.from_iterable({*parts[2:-1:2]} for parts in cut))
        found = Counter(run for parts in cut for run in _joined(parts, seen))
        worth = [run for run, count in found.most_common(RUNS) if count > 1 and len(run) > self._longest]
        return sorted(worth, key=len, reverse=True)

    def _marks(self, texts: Sequence[str]) -> Iterator[str]:
        for mark in self._cuts:
            if not any(mark in text for text in texts):
                yield mark

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(f"({'|'.join(map(re.escape, self._cuts))})")

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._cuts))

    @cached_property
    def _cuts(self) -> list[str]:
        """The added tokens that are found wherever they stand, whatever is around them, and take nothing with them."""
        tokens = self.tokenizer.engine.get_added_tokens_decoder().values()
        if any(token.single_word for token in tokens):
            return []  # which depend on the character before
        plain = [t.content for t in tokens if t.special and not (t.normalized or t.lstrip or t.rstrip)]
        texts = [token.content for token in tokens]
        return [text for text in plain if not any(_overlap(text, other) for other in texts)]


def _joined(parts: Sequence[str], seen: Counter[str]) -> Iterator[str]:
    """The runs of a text that was cut at added tokens (every other part) whose sections were all seen twice."""
    start = None
    for at in range(1, len(parts), 2):
        goes_on = at + 1 < len(parts) - 1 and seen[parts[at + 1]] > 1
        if goes_on and start is None:
            start = at
        elif not goes_on and start is not None:
            yield "".join(parts[start : at + 1])
            start = None


def _overlap(one: str, other: str) -> bool:
    """Whether two texts can stand in one another, or share an end and a beginning."""
    if one == other:
        return any(one[:size] == one[-size:] for size in range(1, len(one)))
    if one in other or other in one:
        return True
    return any(
        one[:size] == other[-size:] or other[:size] == one[-size:] for size in range(1, min(len(one), len(other)))
    )


def _expanded(ids: Any, starts: Any, found: Sequence[Any], runs: Sequence[Any]) -> tuple[Any, Any]:
    """The ids with those of each run in the places where its mark was found."""
    sizes = np.ones(len(ids), dtype=np.int64)
    for places, run in zip(found, runs, strict=True):
        sizes[places] = len(run)
    at = np.concatenate([[0], np.cumsum(sizes)])
    full = np.repeat(ids, sizes)
    for places, run in zip(found, runs, strict=True):
        full[at[places][:, None] + np.arange(len(run))] = run
    return full, at[starts]
