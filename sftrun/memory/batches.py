"""The batches that a recipe makes of its prepared data: how many, and the largest."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from sftrun.data import pack
from sftrun.data.samples import Samples
from sftrun.launch import topology
from sftrun.recipe.model import Recipe
from sftrun.types import BatchShape


class Rows(msgspec.Struct, frozen=True):
    """Length and trained tokens of each row of a split ([rows]); of packed rows, of the samples in them, too."""

    lengths: Any
    trained: Any
    packs: pack.Packs | None = None

    def __len__(self) -> int:
        return len(self.lengths) if self.packs is None else len(self.packs)


def read(prepared: Path, split: str, packed: bool = False) -> Rows | None:
    """The rows of a prepared split; None where there are none."""
    file = prepared / f"{split}.arrow"
    if not file.is_file():
        return None
    samples = Samples(file)
    packs = pack.read_packs(prepared / f"{split}.packs.arrow") if packed else None
    return Rows(samples.lengths, samples.trained_tokens(), packs)


def steps(recipe: Recipe, rows: int) -> int:
    """Optimizer steps of a run, with as many processes as it would have here."""
    return recipe.train.steps(rows, topology.size(recipe))


def largest(recipe: Recipe, rows: Rows) -> list[int]:
    """The rows, or the packs, of the largest batch: the longest ones, as rows of similar lengths share batches."""
    lengths = rows.lengths if rows.packs is None else _pack_lengths(rows)
    count = recipe.train.micro_batch
    order = np.argsort(-lengths, kind="stable")[:count]
    return [int(order[index % len(order)]) for index in range(min(count, len(order)))]


def training(recipe: Recipe, rows: Rows | None) -> BatchShape:
    """The largest batch of a recipe; without data, full ones in which all tokens are trained.

    Rows longer than max_seq_len, which shorter recipes than the prepared one may have, are as if cut.
    """
    size, longest = recipe.train.micro_batch, recipe.model.max_seq_len
    packed = recipe.packing.strategy != "none"
    if rows is None:
        return BatchShape([longest] * size, size * longest, packed)
    if rows.packs is None:
        chosen: Any = largest(recipe, rows)
    elif longest < _pack_lengths(rows).max():  # packed anew, all but full
        return BatchShape(
            [longest] * size, round(size * longest * float(rows.trained.sum() / rows.lengths.sum())), True
        )
    else:
        chosen = np.concatenate([rows.packs.rows(each) for each in largest(recipe, rows)])
    return _shape(np.minimum(rows.lengths[chosen], longest), rows.trained[chosen], packed)


def evaluation(recipe: Recipe, rows: Rows | None) -> BatchShape | None:
    """The largest batch of an evaluation while training; they are taken in order, and padded."""
    if recipe.train.eval_strategy == "no":
        return None
    size, longest = recipe.train.eval_batch_size, recipe.model.max_seq_len
    if rows is None:
        return BatchShape([longest] * size, size * longest)
    starts = range(0, len(rows.lengths), size)
    widest = max(starts, key=lambda at: rows.lengths[at : at + size].max() * len(rows.lengths[at : at + size]))
    part = slice(widest, widest + size)
    return _shape(np.minimum(rows.lengths[part], longest), rows.trained[part], False)


def _shape(lengths: Any, trained: Any, packed: bool) -> BatchShape:
    return BatchShape(lengths.tolist(), int(np.minimum(trained, lengths).sum()), packed)


def _pack_lengths(rows: Rows) -> Any:
    assert rows.packs is not None
    return np.add.reduceat(rows.lengths[rows.packs.order], rows.packs.starts[:-1])
