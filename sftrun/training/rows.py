"""Prepared samples, and packs of them, as torch datasets."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

import sftrun
import sftrun.data


def rows_of(recipe: sftrun.Recipe, run: sftrun.RunDir) -> "Rows | PackedRows":
    """Returns the rows that a recipe trains on: samples of the training split, or packs of them."""
    file = run.prepared / "train.arrow"
    return Rows(file) if recipe.packing.strategy == "none" else PackedRows(file, run.prepared / "train.packs.arrow")


def validation_rows(run: sftrun.RunDir) -> "Rows | None":
    """Returns the samples of the validation split; None if there is none."""
    file = run.prepared / "val.arrow"
    return Rows(file) if file.is_file() else None


def one_row(rows: "Rows | None") -> datasets.Dataset | None:
    """Returns the first sample as the dataset that trl inspects when a trainer is created."""
    if rows is None:
        return None
    return datasets.Dataset.from_list([{name: values.tolist() for name, values in rows[0].items()}])


class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """The samples of a split: `input_ids` and `labels` ([tokens], int64), and the length of every row in `lengths`."""

    def __init__(self, file: Path) -> None:
        self.samples = sftrun.data.Samples(file)
        self.lengths = self.samples.lengths

    def __reduce__(self) -> Any:
        return Rows, (self.samples.file,)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> dict[str, Any]:
        ids, labels = self.samples.arrays(row)
        return {"input_ids": ids.astype(np.int64), "labels": labels.astype(np.int64)}


class PackedRows(torch.utils.data.Dataset[dict[str, Any]]):
    """The packs of a split; a pack has its samples end to end, and their lengths in `seq_lengths`."""

    def __init__(self, file: Path, packs: Path) -> None:
        self.files = (file, packs)
        self.samples = sftrun.data.Samples(file)
        self.packs = sftrun.data.read_packs(packs)
        if len(self.packs.order) != len(self.samples):
            raise RuntimeError(f"{packs} packs {len(self.packs.order)} samples, but {file} has {len(self.samples)}")

    def __reduce__(self) -> Any:
        return PackedRows, self.files

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, pack: int) -> dict[str, Any]:
        if not 0 <= pack < len(self):
            raise IndexError(pack)
        parts = [self.samples.arrays(int(row)) for row in self.packs.rows(pack)]
        ids, labels = (np.concatenate(each).astype(np.int64) for each in zip(*parts, strict=True))
        return {"input_ids": ids, "labels": labels, "seq_lengths": [len(ids) for ids, _ in parts]}
