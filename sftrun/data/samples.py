"""The reader of a prepared split: samples in a memory-mapped Arrow file, without a copy."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sftrun.data.store import IGNORED
from sftrun.types import Sample


class Samples:
    """The samples of a prepared split, by row; `lengths` has their tokens ([rows]).

    Raises FileNotFoundError if there is no such file.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        batches = list(pa.ipc.open_stream(pa.memory_map(str(file))))
        self.columns = [tuple(_values(batch.column(name)) for name in ("input_ids", "labels")) for batch in batches]
        self.offsets = [batch.column("input_ids").offsets.to_numpy() for batch in batches]
        self.origins = [batch.column("origin") for batch in batches]
        self.firsts = np.cumsum([0, *(batch.num_rows for batch in batches)])
        self.lengths = np.concatenate([np.empty(0, np.int32), *map(np.diff, self.offsets)])

    def __reduce__(self) -> Any:
        return Samples, (self.file,)  # a process that loads data maps the file itself

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> Sample:
        batch, at = self._place(row)
        ids, labels = self.arrays(row)
        return Sample(ids.tolist(), (labels != IGNORED).astype(int).tolist(), self.origins[batch][at].as_py())

    def __iter__(self) -> Iterator[Sample]:
        return (self[row] for row in range(len(self)))

    def arrays(self, row: int) -> tuple[Any, Any]:
        """Returns the ids and the labels of a sample ([tokens], int32): read-only views of the mapped file."""
        batch, at = self._place(row)
        start, end = self.offsets[batch][at:][:2]
        ids, labels = self.columns[batch]
        return ids[start:end], labels[start:end]

    def trained_tokens(self) -> Any:
        """Returns the number of trained tokens of each sample ([rows])."""
        counts = [np.empty(0, np.int64)]
        for (_, labels), offsets in zip(self.columns, self.offsets, strict=True):
            before = np.concatenate([[0], np.cumsum(labels != IGNORED)])
            counts.append(np.diff(before[offsets]))
        return np.concatenate(counts)

    def _place(self, row: int) -> tuple[int, int]:
        """Returns the record batch of a row, and the row within it."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        batch = int(np.searchsorted(self.firsts, row, "right")) - 1
        return batch, int(row - self.firsts[batch])


def _values(column: pa.ListArray) -> Any:
    return column.values.to_numpy(zero_copy_only=True)
