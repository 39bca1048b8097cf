"""The mask proof: counts of trained tokens, made on the samples themselves, and the checks that they must pass."""

import hashlib
import weakref
from typing import Any

import msgspec
import numpy as np

from sftrun.data.ledger import Counts, describe_reasons
from sftrun.data.masks.skeleton import Skeleton
from sftrun.data.pipeline import Batch, Pipeline
from sftrun.data.system_prompts import SystemPrompts
from sftrun.data.tokens import offsets
from sftrun.data.tokens.tokenizer import Tokenizer
from sftrun.errors import Problem
from sftrun.types import Rendered

EXAMPLES = 5  # samples of each split that the proof shows


class Tally(msgspec.Struct):
    """Counts of one split; `lengths[n]` samples have n tokens, and `texts` has a hash of each sample's ids."""

    counts: offsets.Counts = msgspec.field(default_factory=offsets.Counts)
    rows: int = 0
    double_bos: int = 0
    without_trained: int = 0
    lengths: Any = None
    texts: list[Any] = msgspec.field(default_factory=list)
    sizes: list[Any] = msgspec.field(default_factory=list)
    examples: list[dict[str, Any]] = msgspec.field(default_factory=list)
    hash: str = ""
    system_prompts: SystemPrompts = msgspec.field(default_factory=SystemPrompts)

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return sum(self.counts.tokens.values())

    @property
    def trained(self) -> int:
        """Number of trained tokens."""
        return sum(self.counts.trained.values())

    def count_duplicates(self) -> int:
        """Counts the samples whose ids an earlier sample has."""
        return self.rows - len(np.unique(np.concatenate(self.texts))) if self.texts else 0


class Proof:
    """The mask proof of a preparation, counted from every sample as it is stored."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.tokenizer: Tokenizer = pipeline.tokenizer
        self.bos = pipeline.tokenizer.id_of("bos_token")
        self.limit = pipeline.recipe.model.max_seq_len
        self.splits: dict[str, Tally] = {}
        self.ends: set[str] = set()
        self._shapes: weakref.WeakSet[Skeleton] = weakref.WeakSet()

    def add(self, split: str, batch: Batch) -> None:
        """Counts the samples of one batch."""
        tally = self.splits.setdefault(split, Tally(lengths=np.zeros(self.limit + 1, dtype=np.int64)))
        ends = np.cumsum(batch.lengths)
        starts = ends - batch.lengths
        tally.counts.merge(batch.counts)
        tally.rows += len(batch.lengths)
        tally.lengths += np.bincount(batch.lengths, minlength=self.limit + 1)
        tally.sizes.append(batch.lengths.astype(np.int32))
        tally.texts.append(_hash_samples(batch, starts, ends))
        if len(starts):
            tally.without_trained += int((np.add.reduceat(batch.trained, starts) == 0).sum())
        if self.bos is not None and len(batch.ids) > 1:
            two = starts[batch.lengths > 1]
            tally.double_bos += int(((batch.ids[two] == self.bos) & (batch.ids[two + 1] == self.bos)).sum())
        wanted = range(min(EXAMPLES - len(tally.examples), len(batch.origins)))
        for inspected in self.pipeline.inspect_chosen(batch, wanted) if wanted else ():
            tally.examples.append({"origin": inspected.sample.origin, "pieces": inspected.pieces})
        for row in {row for row, _ in batch.cut_from}:
            self._collect_endings(batch.pairs[row][1])
            tally.system_prompts.add(batch.pairs[row][0].messages)

    def _collect_endings(self, rendered: Rendered) -> None:
        """Collects the texts that end turns, which are equal in all rows of one skeleton."""
        if rendered.shape in self._shapes:
            return
        if rendered.shape is not None:
            self._shapes.add(rendered.shape)
        self.ends.update(rendered.text[span.start : span.end] for span in rendered.spans if span.end_of_turn)

    def set_hash(self, split: str, digest: str) -> None:
        """Takes the hash of a split's ids and masks."""
        self.splits.setdefault(split, Tally(lengths=np.zeros(self.limit + 1, dtype=np.int64))).hash = digest

    def find_problems(self, entries: Counts) -> list[Problem]:
        """Returns the reasons why these masks are unfit for training; `entries` explain the rows that are missing."""
        found = []
        if "train" not in self.splits or not self.splits["train"].rows:
            read = self.pipeline.rows_in.get("train", 0)
            reasons = describe_reasons(entries.list_left_out("train"))
            message = f"no row to train on is left: {read:,} read" + (f", {reasons}" if reasons else "")
            found.append(Problem(message, path=("source",)))
        for split, tally in self.splits.items():
            if tally.without_trained:
                found.append(Problem(f"{split}: {tally.without_trained} rows have no trained token", path=("masker",)))
            if tally.double_bos:
                hint = "remove one from the chat template or from the rows"
                found.append(Problem(f"{split}: {tally.double_bos} rows begin with two BOS tokens", hint=hint))
            counts = tally.counts
            missed = counts.turns - counts.ended - counts.cut
            if missed:
                found.append(Problem(f"{split}: the end of {missed} of {counts.turns} trained turns is not trained"))
        return found

    def to_json(self) -> dict[str, Any]:
        """Returns the proof for proof.json, with a hash over the ids and masks of every split."""
        together = "".join(f"{split}:{tally.hash}\n" for split, tally in sorted(self.splits.items()))
        ends = {end: self.tokenizer.encode([end])[0].ids for end in sorted(self.ends)}
        return {
            "hash": hashlib.sha256(together.encode()).hexdigest(),
            "template": self.tokenizer.template.fingerprint,
            "tokenizer": self.tokenizer.fingerprint,
            "unread_variables": self.pipeline.unread,
            "date": self.pipeline.date,
            "crosscheck": self.pipeline.crosscheck.to_json(),
            "borders": self.pipeline.borders.to_json(),
            "end_of_turn": ends,
            "recipe_end": self.pipeline.renderer.recipe_end,
            "stop_ids": sorted({ids[-1] for ids in ends.values() if len(ids) == 1 or ids[-1] in self.tokenizer.added}),
            "splits": {split: _split_facts(tally) for split, tally in self.splits.items()},
        }


def _hash_samples(batch: Batch, starts: Any, ends: Any) -> Any:
    ids = np.ascontiguousarray(batch.ids).tobytes()
    size = batch.ids.itemsize
    return np.array([hash(ids[a * size : b * size]) for a, b in zip(starts, ends, strict=True)], dtype=np.int64)


def _split_facts(tally: Tally) -> dict[str, Any]:
    counts = tally.counts
    return {
        "rows": tally.rows,
        "tokens": tally.tokens,
        "trained": tally.trained,
        "by_role": count_by_role(counts),
        "turns": counts.turns,
        "turns_ended": counts.ended,
        "turns_cut": counts.cut,
        "rows_without_trained": tally.without_trained,
        "double_bos": tally.double_bos,
        "straddling": counts.straddling,
        "examples": tally.examples,
        "hash": tally.hash,
    }


def count_by_role(counts: offsets.Counts) -> dict[str, dict[str, int]]:
    """Returns the tokens and trained tokens of each role."""
    return {role: {"tokens": number, "trained": counts.trained[role]} for role, number in counts.tokens.items()}
