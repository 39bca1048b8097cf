"""How samples become batches: which ones share a batch, and what the model is given."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

import sftrun
import sftrun.data
from sftrun.training.rows import PackedRows

IGNORED = sftrun.data.IGNORED
WINDOW = 50  # batches whose rows are sorted by length together: more save no more padding, and mix less


class Shuffled(torch.utils.data.Sampler[int]):
    """Rows in a random order, the same in every process: the seed and the epoch alone decide.

    `size`, where it is more than there are rows, counts the empty ones of `Even`, which come last.
    """

    def __init__(self, rows: int, seed: int, size: int | None = None) -> None:
        self.rows, self.size, self.seed, self.epoch = rows, size or rows, seed, 0

    def __len__(self) -> int:
        return self.size

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before each epoch, also of a resumed run."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        yield from self.order(np.random.default_rng([self.seed, self.epoch]))
        yield from range(self.rows, self.size)

    def order(self, random: Any) -> list[int]:
        """All rows, as this epoch has them."""
        return random.permutation(self.rows).tolist()  # type: ignore[no-any-return]


class ByLength(Shuffled):
    """Rows in a random order, in which each stretch of `batch` rows is of similar lengths.

    Within windows of 50 batches, drawn anew each epoch, rows are sorted by length and cut into batches; those of all
    windows are then shuffled. A batch that is not full comes last.
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


class Even(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows, and so many empty ones after them that `parts` processes have batches alike: `batch` rows each.

    accelerate would repeat rows instead, which would be trained twice. A batch takes up empty rows only where it has
    no other; they have no loss.
    """

    def __init__(self, rows: Any, batch: int, parts: int) -> None:
        self.rows = rows
        self.size = -(-len(rows) // (batch * parts)) * batch * parts if parts > 1 else len(rows)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, row: int) -> dict[str, Any]:
        found: dict[str, Any] = EMPTY if len(self.rows) <= row < self.size else self.rows[row]
        return found


def is_empty(labels: Any) -> bool:
    """Whether there is nothing to train in a row, or a batch."""
    return bool((labels == IGNORED).all())


def _without_empty(examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for each in examples if not is_empty(each["labels"])] or examples[:1]


def collator(rows: Any, pad_id: int) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """What makes a batch of these rows: packs are laid end to end, others padded."""
    return flattened if isinstance(rows, PackedRows) else Padded(pad_id)


class Padded:
    """Makes a batch of rows: ids, labels and mask ([rows, longest]), padded on the right."""

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


def flattened(packs: list[dict[str, Any]]) -> dict[str, Any]:
    """All packs of a batch as one row ([1, tokens]), whose `position_ids` start again with each sequence.

    There is no attention mask: given one, transformers would not look for where sequences start. The first token of a
    sequence has no label, for it would be predicted from the last of the one before.
    """
    packs = _without_empty(packs)
    ids, labels = (np.concatenate([pack[name] for pack in packs]) for name in ("input_ids", "labels"))
    lengths = np.concatenate([pack["seq_lengths"] for pack in packs])
    starts = np.cumsum(lengths) - lengths
    labels[starts] = IGNORED
    positions = np.arange(len(ids)) - np.repeat(starts, lengths)
    row = {"input_ids": ids, "labels": labels, "position_ids": positions}
    return {name: torch.from_numpy(values)[None] for name, values in row.items()}
