"""Prepared samples as torch datasets, read from memory-mapped Arrow one item at a time."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch

import sftrun
import sftrun.data


def rows_of(recipe: sftrun.Recipe, run: sftrun.RunDir) -> "Rows | PackedRows":
    """What a recipe trains on: the samples of the training split, or packs of them."""
    file = run.prepared / "train.arrow"
    return Rows(file) if recipe.packing.strategy == "none" else PackedRows(file, run.prepared / "train.packs.arrow")


def dataset(run: sftrun.RunDir, split: str) -> datasets.Dataset | None:
    """The samples of a split as a dataset of the kind that trl looks at; None where there is no such split."""
    file = run.prepared / f"{split}.arrow"
    return datasets.Dataset.from_file(str(file)).remove_columns("origin") if file.is_file() else None


class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """The samples of a split: `input_ids` and `labels` ([tokens], int64), and the `lengths` of all of them."""

    def __init__(self, file: Path) -> None:
        self.file = file
        batches = list(pa.ipc.open_stream(pa.memory_map(str(file))))
        self.columns = [tuple(_values(batch.column(name)) for name in ("input_ids", "labels")) for batch in batches]
        self.offsets = [batch.column("input_ids").offsets.to_numpy() for batch in batches]
        self.firsts = np.cumsum([0, *(batch.num_rows for batch in batches)])
        self.lengths = np.concatenate([np.empty(0, np.int32), *map(np.diff, self.offsets)])

    def __reduce__(self) -> Any:
        return Rows, (self.file,)  # a process that loads data maps the file itself

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> dict[str, Any]:
        ids, labels = self.read(row)
        return {"input_ids": ids.astype(np.int64), "labels": labels.astype(np.int64)}

    def read(self, row: int) -> Any:
        """Ids and labels of a sample, in the mapped file."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        batch = int(np.searchsorted(self.firsts, row, "right")) - 1
        start, end = self.offsets[batch][row - self.firsts[batch] :][:2]
        return tuple(column[start:end] for column in self.columns[batch])


def _values(column: pa.ListArray) -> Any:
    return column.values.to_numpy(zero_copy_only=True)


class PackedRows(torch.utils.data.Dataset[dict[str, Any]]):
    """The packs of a split: the samples of each end to end, and their lengths (`seq_lengths`)."""

    def __init__(self, file: Path, packs: Path) -> None:
        self.files = (file, packs)
        self.samples = Rows(file)
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
        parts = [self.samples.read(int(row)) for row in self.packs.rows(pack)]
        ids, labels = (np.concatenate(each).astype(np.int64) for each in zip(*parts, strict=True))
        return {"input_ids": ids, "labels": labels, "seq_lengths": [len(ids) for ids, _ in parts]}
