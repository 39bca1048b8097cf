"""Packing: whole samples put together into sequences of at most `capacity` tokens, and the file that says which."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sftrun.data.store import integers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ids = NDArray[np.integer]


@dataclass(frozen=True)
class Packs:
    """Which samples share a sequence: pack `p` holds the samples `order[starts[p]:starts[p + 1]]` ([int32])."""

    order: "Ids"
    starts: "Ids"

    def __len__(self) -> int:
        return len(self.starts) - 1

    def rows(self, pack: int) -> "Ids":
        """The samples of one pack."""
        samples: Ids = self.order[self.starts[pack] : self.starts[pack + 1]]
        return samples


class _Step(NamedTuple):
    """Samples `[first, first + len(bins) * each)` of the sorted order go into `bins`, `each` of them into every one."""

    bins: "Ids"
    each: int
    first: int


def best_fit(lengths: "Ids", capacity: int) -> Packs:
    """Best-fit decreasing: the longest sample left goes where it leaves the least space free.

    Samples of one length are taken in their order, and packs are in the order in which they were begun. Exact, yet
    in bulk: all samples of a length are put at once into all packs with the same space. Raises ValueError for a
    sample that is empty or longer than `capacity`.
    """
    import numpy as np
    import pyarrow.compute as pc

    lengths = np.asarray(lengths, np.int32)
    if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= capacity:
        raise ValueError(f"lengths from {lengths.min()} to {lengths.max()} do not fit into 1 to {capacity}")
    counts = np.bincount(lengths, minlength=1)
    longest_first = pc.array_sort_indices(integers(lengths), order="descending")  # counts, and keeps ties in order
    steps, count = _steps(counts, capacity)
    return _grouped(_numbers(longest_first), steps, count)


def _numbers(indices: Any) -> "Ids":
    """Arrow's indices, as 32 bits; its own `to_numpy` imports pandas."""
    import numpy as np

    return np.frombuffer(indices.buffers()[1], np.uint64, len(indices)).astype(np.int32)


def _steps(counts: "Ids", capacity: int) -> tuple[list[_Step], int]:
    """What goes where, by number of samples of each length, and the number of packs."""
    bins, steps, first = _Bins(capacity), [], 0
    for length in counts.nonzero()[0][::-1].tolist():
        left = int(counts[length])
        while left:
            space = bins.tightest(length)
            each = space // length  # the one that was just filled is the tightest fit until it is full
            for chosen, into in bins.take(space, left, each):
                steps.append(_Step(chosen, into, first))
                bins.put(chosen, space - into * length)
                first += len(chosen) * into
                left -= len(chosen) * into
    return steps, bins.made


class _Bins:
    """Packs under way, by their free space; a bit for each space says whether there are any."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.free: list[list[Ids]] = [[] for _ in range(capacity + 1)]
        self.bits = 0
        self.made = 0

    def tightest(self, length: int) -> int:
        """The smallest space that holds `length`: that of a pack under way, else that of a new one."""
        fitting = self.bits >> length
        return length + (fitting & -fitting).bit_length() - 1 if fitting else self.capacity

    def take(self, space: int, samples: int, each: int) -> "Iterator[tuple[Ids, int]]":
        """Packs with this space for as many of the samples as fit, and how many of them go into each."""
        found = self._pop(space, -(-samples // each))
        full = min(len(found), samples // each)
        if full:
            yield found[:full], each
        if full < len(found):
            yield found[full:], samples - full * each

    def _pop(self, space: int, wanted: int) -> "Ids":
        import numpy as np

        if not self.bits >> space & 1:  # only of the whole capacity: new ones
            self.made += wanted
            return np.arange(self.made - wanted, self.made, dtype=np.int32)
        kept, found = self.free[space], []
        while kept and wanted:
            found.append(kept[-1][:wanted])
            wanted -= len(found[-1])
            kept[-1] = kept[-1][len(found[-1]) :]
            if not len(kept[-1]):
                kept.pop()
        if not kept:
            self.bits &= ~(1 << space)
        return np.concatenate(found)

    def put(self, bins: "Ids", space: int) -> None:
        """Notes that packs have this space left; one without any is finished."""
        if space and len(bins):
            self.free[space].append(bins)
            self.bits |= 1 << space


def _grouped(samples: "Ids", steps: list[_Step], count: int) -> Packs:
    """Samples, sorted by length, brought into the order of their packs."""
    import numpy as np

    sizes = np.zeros(count, np.int32)
    for step in steps:
        sizes[step.bins] += step.each
    starts = np.zeros(count + 1, np.int32)
    np.cumsum(sizes, out=starts[1:])
    order, at = np.empty(len(samples), np.int32), starts[:-1].copy()
    for bins, each, first in steps:
        places = at[bins][:, None] + np.arange(each, dtype=np.int32)
        order[places] = samples[first : first + places.size].reshape(places.shape)
        at[bins] += each
    return Packs(order, starts)


def write(file: Path, packs: Packs) -> None:
    """Writes packs as an Arrow stream with one column, `rows`: the samples of each pack."""
    import pyarrow as pa

    rows = pa.ListArray.from_arrays(integers(packs.starts), integers(packs.order))
    batch = pa.record_batch([rows], names=["rows"])
    with pa.OSFile(str(file), "wb") as out, pa.ipc.new_stream(out, batch.schema) as stream:
        stream.write_batch(batch)  # one batch: read back, it is two arrays in the mapped file


def read_packs(file: Path) -> Packs:
    """Packs as they were written, mapped and not loaded."""
    import pyarrow as pa

    rows = pa.ipc.open_stream(pa.memory_map(str(file))).read_next_batch().column(0)
    return Packs(rows.values.to_numpy(), rows.offsets.to_numpy())
