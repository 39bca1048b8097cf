"""Sections: text between special tokens that many rows share, such as a system prompt, is encoded once a batch.

A tokenizer first cuts a text at its added tokens, and encodes each section between them on its own; the position
of a section matters only if it begins the text. So a run of sections, from one added token to another, has the
same ids at every position. In the texts of a batch, an unused added token replaces each such run; in their ids,
the ids of the run replace that token.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from sftrun.data.tokens.tokenizer import Tokenizer

SAMPLED_ROWS = 8  # rows of a batch that are searched for sections that occur twice
VERIFIED = 64  # one text in so many is encoded whole, and compared
MAX_RUNS = 4  # runs replaced in a batch; each costs a search in every row


class Replacement(NamedTuple):
    """A run of sections, the mark that replaces it, and the number of replacements in the batch."""

    mark: str
    run: str
    times: int


class Sections:
    """A tokenizer of batches that encodes shared sections once; it gives ids and no offsets."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._ids: dict[str, Any] = {}

    def tokenize(self, texts: Sequence[str]) -> tuple[Any, Any]:
        """Returns the ids of texts, end to end, and where each text starts; [tokens] and [texts + 1]."""
        marked, replacements, left = texts, [], sum(map(len, texts))
        for run, mark in zip(self._find_runs(texts), self._choose_marks(texts), strict=False):
            marked = [text.replace(run, mark) for text in marked]
            before, left = left, sum(map(len, marked))
            replacements.append(Replacement(mark, run, (before - left) // (len(run) - len(mark))))
        if not replacements:
            return self._encode(texts)
        ids, starts = self._encode(marked)
        found = [np.flatnonzero(ids == self.tokenizer.engine.token_to_id(each.mark)) for each in replacements]
        if any(len(places) != each.times for places, each in zip(found, replacements, strict=True)):
            return self._encode(texts)  # other text has the same id as the mark, as with an unknown token
        full = _expand(ids, starts, found, [self._encode_run(each.run) for each in replacements])
        return full if self._verify(texts, *full) else self._encode(texts)

    def _verify(self, texts: Sequence[str], ids: Any, starts: Any) -> bool:
        """Returns True if a sample of the texts has the same ids when each is encoded whole."""
        sample = range(0, len(texts), VERIFIED)
        whole, _ = self._encode([texts[row] for row in sample])
        joined = [ids[starts[row] : starts[row + 1]] for row in sample]
        return bool(np.array_equal(whole, np.concatenate(joined)))

    def _encode(self, texts: Sequence[str]) -> tuple[Any, Any]:
        lists = [encoding.ids for encoding in self.tokenizer.encode_ids(texts)]
        starts = np.zeros(len(lists) + 1, dtype=np.int64)
        np.cumsum([len(each) for each in lists], out=starts[1:])
        return np.fromiter(chain.from_iterable(lists), dtype=np.int32, count=int(starts[-1])), starts

    def _encode_run(self, run: str) -> Any:
        if run not in self._ids:
            self._ids[run] = np.array(self.tokenizer.encode_ids([run])[0].ids, dtype=np.int32)
        return self._ids[run]

    def _find_runs(self, texts: Sequence[str]) -> list[str]:
        """Returns the longest runs of sections that several texts share, the longest first."""
        if not self._cut_tokens or len(texts) < SAMPLED_ROWS:
            return []
        cut = [self._pattern.split(text) for text in texts[:: len(texts) // SAMPLED_ROWS]]
        seen = Counter(chain.from_iterable({*parts[2:-1:2]} for parts in cut))
        found = Counter(run for parts in cut for run in _join_sections(parts, seen))
        worth = [run for run, count in found.most_common(MAX_RUNS) if count > 1 and len(run) > self._longest_token]
        return sorted(worth, key=len, reverse=True)

    def _choose_marks(self, texts: Sequence[str]) -> Iterator[str]:
        """Yields cut tokens that no text contains."""
        for mark in self._cut_tokens:
            if not any(mark in text for text in texts):
                yield mark

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(f"({'|'.join(map(re.escape, self._cut_tokens))})")

    @cached_property
    def _longest_token(self) -> int:
        return max(map(len, self._cut_tokens))

    @cached_property
    def _cut_tokens(self) -> list[str]:
        """The added tokens that are recognised in any context and take no neighbouring characters with them."""
        tokens = self.tokenizer.engine.get_added_tokens_decoder().values()
        if any(token.single_word for token in tokens):
            return []  # such tokens depend on the character before them
        plain = [t.content for t in tokens if t.special and not (t.normalized or t.lstrip or t.rstrip)]
        texts = [token.content for token in tokens]
        disjoint = _find_disjoint(texts)
        return [text for text in plain if text in disjoint]


def _join_sections(parts: Sequence[str], seen: Counter[str]) -> Iterator[str]:
    """Yields the runs of sections seen twice; every other part is an added token."""
    start = None
    for at in range(1, len(parts), 2):
        continues = at + 1 < len(parts) - 1 and seen[parts[at + 1]] > 1
        if continues and start is None:
            start = at
        elif not continues and start is not None:
            yield "".join(parts[start : at + 1])
            start = None


def _find_disjoint(texts: Sequence[str]) -> set[str]:
    """Returns the texts that share no characters with another occurrence, of themselves or of another text."""
    starts = {text[:size] for text in texts for size in range(1, len(text))}
    ends = {text[-size:] for text in texts for size in range(1, len(text))}
    every = "\0".join(texts)
    inner = [text for text in texts if every.count(text) > 1]
    outer = {text for text in texts for part in inner if part in text}  # with the inner ones themselves
    overlapping = {
        text for text in texts if any(text[:size] in ends or text[-size:] in starts for size in range(1, len(text)))
    }
    return {*texts} - outer - overlapping


def _expand(ids: Any, starts: Any, found: Sequence[Any], runs: Sequence[Any]) -> tuple[Any, Any]:
    """Replaces each mark in the ids by the ids of its run."""
    sizes = np.ones(len(ids), dtype=np.int64)
    for places, run in zip(found, runs, strict=True):
        sizes[places] = len(run)
    at = np.concatenate([[0], np.cumsum(sizes)])
    full = np.repeat(ids, sizes)
    for places, run in zip(found, runs, strict=True):
        full[at[places][:, None] + np.arange(len(run))] = run
    return full, at[starts]
