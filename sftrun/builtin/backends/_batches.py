"""How samples become batches: which ones share a batch, and what the model is given."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

import sftrun
from sftrun.builtin.backends._rows import PackedRows

IGNORED = sftrun.IGNORED
WINDOW = 50  # batches whose rows are sorted by length together: more save no more padding, and mix less


class ByLength(torch.utils.data.Sampler[int]):
    """Rows in a random order, in which each stretch of `batch` rows is of similar lengths.

    Within windows of 50 batches, drawn anew each epoch, rows are sorted by length and cut into batches; those of all
    windows are then shuffled. A batch that is not full comes last. The seed and the epoch alone decide.
    """

    def __init__(self, lengths: Any, batch: int, seed: int) -> None:
        self.lengths, self.batch, self.seed, self.epoch = lengths, batch, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before each epoch, also of a resumed run."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng([self.seed, self.epoch])
        rows = random.permutation(len(self.lengths))
        whole = len(rows) // self.batch * self.batch
        wide = self.batch * WINDOW
        windows = [rows[start : min(start + wide, whole)] for start in range(0, whole, wide)]
        alike = [window[np.argsort(self.lengths[window], kind="stable")] for window in windows]
        batches = np.concatenate([rows[:0], *alike]).reshape(-1, self.batch)
        yield from random.permutation(batches).ravel().tolist()
        yield from rows[whole:].tolist()


def collator(rows: Any, pad_id: int) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """What makes a batch of these rows: packs are laid end to end, others padded."""
    return flattened if isinstance(rows, PackedRows) else Padded(pad_token_id=pad_id)


class Padded(DataCollatorForLanguageModeling):  # type: ignore[misc]
    """trl's collator, with the proof that padding is all it adds."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        for row, example in enumerate(examples):
            size = len(example["input_ids"])
            same = batch["input_ids"][row, :size].tolist() == list(example["input_ids"])
            same &= batch["labels"][row, :size].tolist() == list(example["labels"])
            same &= bool((batch["labels"][row, size:] == IGNORED).all())
            same &= int(batch["attention_mask"][row].sum()) == size
            if not same:
                raise RuntimeError("trl changed the prepared ids or labels of a row")
        return batch


def flattened(packs: list[dict[str, Any]]) -> dict[str, Any]:
    """All packs of a batch as one row ([1, tokens]), whose `position_ids` start again with each sequence.

    There is no attention mask: given one, transformers would not look for where sequences start. The first token of a
    sequence has no label, for it would be predicted from the last of the one before.
    """
    ids, labels = (np.concatenate([pack[name] for pack in packs]) for name in ("input_ids", "labels"))
    lengths = np.concatenate([pack["seq_lengths"] for pack in packs])
    starts = np.cumsum(lengths) - lengths
    labels[starts] = IGNORED
    positions = np.arange(len(ids)) - np.repeat(starts, lengths)
    row = {"input_ids": ids, "labels": labels, "position_ids": positions}
    return {name: torch.from_numpy(values)[None] for name, values in row.items()}
