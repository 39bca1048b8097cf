"""Samplers and collators: they choose the rows of a batch, and build the model's inputs."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

import sftrun
import sftrun.data
from sftrun.training.rows import PackedRows

IGNORED = sftrun.data.IGNORED
WINDOW = 50  # batches sorted by length together; more save no more padding, and mix rows less


class ShuffledSampler(torch.utils.data.Sampler[int]):
    """A sampler in random order, the same on every rank: it depends on the seed and the epoch only.

    `size` may be larger than `rows`: it then counts the empty rows of `EvenDataset`, which come last.
    """

    def __init__(self, rows: int, seed: int, size: int | None = None) -> None:
        self.rows, self.size, self.seed, self.epoch = rows, size or rows, seed, 0

    def __len__(self) -> int:
        return self.size

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch; accelerate calls it before each epoch, also in a resumed run."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        yield from self.order(np.random.default_rng([self.seed, self.epoch]))
        yield from range(self.rows, self.size)

    def order(self, random: Any) -> list[int]:
        """Returns all rows in the order of this epoch."""
        return random.permutation(self.rows).tolist()  # type: ignore[no-any-return]


class LengthGroupedSampler(ShuffledSampler):
    """A sampler in random order that puts `batch` rows of similar lengths next to each other.

    Within windows of 50 batches, drawn anew in each epoch, rows are sorted by length and cut into batches. The batches
    of all windows are then shuffled. An incomplete batch comes last.
    """

    def __init__(self, lengths: Any, batch: int, seed: int, size: int | None = None) -> None:
        super().__init__(len(lengths), seed, size)
        self.lengths, self.batch = lengths, batch

    def order(self, random: Any) -> list[int]:
        rows = random.permutation(len(self.lengths))
        whole = len(rows) // self.batch * self.batch
        wide = self.batch * WINDOW
        windows = [rows[start : min(start + wide, whole)] for start in range(0, whole, wide)]
        alike = [window[np.argsort(self.lengths[window], kind="stable")] for window in windows]
        batches = np.concatenate([rows[:0], *alike]).reshape(-1, self.batch)
        return [*random.permutation(batches).ravel().tolist(), *rows[whole:].tolist()]


EMPTY = {"input_ids": np.zeros(2, np.int64), "labels": np.full(2, IGNORED), "seq_lengths": [2]}


class EvenDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """A dataset with empty rows at its end, so that each of `parts` processes gets the same number of full batches.

    accelerate would repeat rows instead, and train them twice. Empty rows have no loss; collators drop them unless a
    batch has no other rows.
    """

    def __init__(self, rows: Any, batch: int, parts: int) -> None:
        self.rows = rows
        self.size = -(-len(rows) // (batch * parts)) * batch * parts if parts > 1 else len(rows)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, row: int) -> dict[str, Any]:
        sample: dict[str, Any] = EMPTY if len(self.rows) <= row < self.size else self.rows[row]
        return sample


def is_empty(labels: Any) -> bool:
    """Returns True if a row or a batch has no trained token."""
    return bool((labels == IGNORED).all())


def _without_empty(examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for each in examples if not is_empty(each["labels"])] or examples[:1]


def choose_collator(rows: Any, pad_id: int) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """Returns the collator for rows: packs are concatenated, other rows are padded."""
    return flatten_packs if isinstance(rows, PackedRows) else PaddingCollator(pad_id)


class PaddingCollator:
    """A collator that pads rows on the right: ids, labels and mask ([rows, longest])."""

    def __init__(self, pad_id: int) -> None:
        self.fill = {"input_ids": pad_id, "labels": IGNORED, "attention_mask": 0}

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows = [{**row, "attention_mask": np.ones(len(row["input_ids"]), np.int64)} for row in _without_empty(examples)]
        width = max(len(row["input_ids"]) for row in rows)
        return {
            name: torch.from_numpy(np.stack([pad(row[name], width, fill) for row in rows]))
            for name, fill in self.fill.items()
        }


def pad(values: Any, width: int, fill: int) -> Any:
    """Returns values ([tokens]) with `fill` on the right, up to a width."""
    return np.pad(np.asarray(values), (0, width - len(values)), constant_values=fill)


def flatten_packs(packs: list[dict[str, Any]]) -> dict[str, Any]:
    """Concatenates the packs of a batch to one row ([1, tokens]); `position_ids` restart with each sequence.

    The row has no attention mask: with one, transformers would not search for the starts of sequences. The first token
    of a sequence has no label, because the previous sequence would predict it.
    """
    packs = _without_empty(packs)
    ids, labels = (np.concatenate([pack[name] for pack in packs]) for name in ("input_ids", "labels"))
    lengths = np.concatenate([pack["seq_lengths"] for pack in packs])
    starts = np.cumsum(lengths) - lengths
    labels[starts] = IGNORED
    positions = np.arange(len(ids)) - np.repeat(starts, lengths)
    row = {"input_ids": ids, "labels": labels, "position_ids": positions}
    return {name: torch.from_numpy(values)[None] for name, values in row.items()}
