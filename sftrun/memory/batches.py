"""The batches of a recipe on its prepared data: their number, and the largest one."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from sftrun.data import pack
from sftrun.data.samples import Samples
from sftrun.launch import topology
from sftrun.recipe.model import Recipe
from sftrun.types import BatchShape


class RowLengths(msgspec.Struct, frozen=True):
    """Token and trained-token counts of the rows of a split, each [rows]; with packing, of the samples in the packs."""

    lengths: Any
    trained: Any
    packs: pack.Packs | None = None

    def __len__(self) -> int:
        return len(self.lengths) if self.packs is None else len(self.packs)


def read_row_lengths(prepared: Path, split: str, packed: bool = False) -> RowLengths | None:
    """Returns the lengths of a prepared split; None if the split is missing."""
    file = prepared / f"{split}.arrow"
    if not file.is_file():
        return None
    samples = Samples(file)
    packs = pack.read_packs(prepared / f"{split}.packs.arrow") if packed else None
    return RowLengths(samples.lengths, samples.trained_tokens(), packs)


def count_steps(recipe: Recipe, rows: int) -> int:
    """Returns the optimizer steps of a run with the world size that it would have on this machine."""
    return recipe.train.steps(rows, topology.world_size(recipe))


def pick_longest_rows(recipe: Recipe, rows: RowLengths) -> list[int]:
    """Returns the rows (or packs) of the largest batch: the longest ones, as rows of similar lengths share a batch."""
    lengths = rows.lengths if rows.packs is None else _pack_lengths(rows)
    count = recipe.train.micro_batch
    order = np.argsort(-lengths, kind="stable")[:count]
    return [int(order[index % len(order)]) for index in range(min(count, len(order)))]


def largest_training_batch(recipe: Recipe, rows: RowLengths | None) -> BatchShape:
    """Returns the largest micro-batch of a recipe; without data, a full one in which every token is trained.

    Rows longer than max_seq_len count as cut: the recipe may have a lower max_seq_len than the prepared data.
    """
    size = recipe.train.micro_batch
    longest = recipe.model.max_seq_len
    packed = recipe.packing.strategy != "none"
    if rows is None:
        return BatchShape([longest] * size, size * longest, packed)
    if rows.packs is None:
        chosen: Any = pick_longest_rows(recipe, rows)
    elif longest < _pack_lengths(rows).max():  # new packs would be almost full
        return BatchShape(
            [longest] * size, round(size * longest * float(rows.trained.sum() / rows.lengths.sum())), True
        )
    else:
        chosen = np.concatenate([rows.packs.rows(each) for each in pick_longest_rows(recipe, rows)])
    return _shape(np.minimum(rows.lengths[chosen], longest), rows.trained[chosen], packed)


def largest_evaluation_batch(recipe: Recipe, rows: RowLengths | None) -> BatchShape | None:
    """Returns the largest batch of an evaluation during training, whose batches are in the order of rows and padded."""
    if recipe.train.eval_strategy == "no":
        return None
    size = recipe.train.eval_batch_size
    longest = recipe.model.max_seq_len
    if rows is None:
        return BatchShape([longest] * size, size * longest)
    starts = range(0, len(rows.lengths), size)
    widest = max(starts, key=lambda at: rows.lengths[at : at + size].max() * len(rows.lengths[at : at + size]))
    part = slice(widest, widest + size)
    return _shape(np.minimum(rows.lengths[part], longest), rows.trained[part], False)


def _shape(lengths: Any, trained: Any, packed: bool) -> BatchShape:
    return BatchShape(lengths.tolist(), int(np.minimum(trained, lengths).sum()), packed)


def _pack_lengths(rows: RowLengths) -> Any:
    assert rows.packs is not None
    return np.add.reduceat(rows.lengths[rows.packs.order], rows.packs.starts[:-1])
