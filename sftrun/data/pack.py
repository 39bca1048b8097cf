"""Packing: assigns whole samples to sequences of at most `capacity` tokens, and stores the assignment."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sftrun.data.store import to_int32_array

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ids = NDArray[np.integer]


@dataclass(frozen=True)
class Packs:
    """Packs of samples: pack `p` holds the samples `order[starts[p]:starts[p + 1]]` ([int32])."""

    order: "Ids"
    starts: "Ids"

    def __len__(self) -> int:
        return len(self.starts) - 1

    def rows(self, pack: int) -> "Ids":
        """Returns the samples of one pack."""
        samples: Ids = self.order[self.starts[pack] : self.starts[pack + 1]]
        return samples


class _Step(NamedTuple):
    """A packing step: the sorted samples `[first, first + len(bins) * each)` go into `bins`, `each` into each one."""

    bins: "Ids"
    each: int
    first: int


def best_fit(lengths: "Ids", capacity: int) -> Packs:
    """Packs by best-fit decreasing: the longest sample left goes into the pack where it leaves the least space.

    Samples of equal length keep their order, and packs are in the order in which they were begun. The result is exact,
    and computed in bulk: samples of one length fill every pack with the same space at once. Raises ValueError for a
    sample that is empty or longer than `capacity`.
    """
    import numpy as np
    import pyarrow.compute as pc

    lengths = np.asarray(lengths, np.int32)
    if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= capacity:
        raise ValueError(f"lengths from {lengths.min()} to {lengths.max()} do not fit into 1 to {capacity}")
    counts = np.bincount(lengths, minlength=1)
    longest_first = pc.array_sort_indices(
        to_int32_array(lengths), order="descending"
    )  # a counting sort, stable for ties
    steps, count = _plan_steps(counts, capacity)
    return _group_by_pack(_to_int32(longest_first), steps, count)


def _to_int32(indices: Any) -> "Ids":
    """Returns Arrow's indices as 32 bits, without `to_numpy`, which imports pandas."""
    import numpy as np

    return np.frombuffer(indices.buffers()[1], np.uint64, len(indices)).astype(np.int32)


def _plan_steps(counts: "Ids", capacity: int) -> tuple[list[_Step], int]:
    """Returns the steps for the number of samples of each length, and the number of packs."""
    bins, steps, first = _Bins(capacity), [], 0
    for length in counts.nonzero()[0][::-1].tolist():
        left = int(counts[length])
        while left:
            space = bins.find_tightest(length)
            each = space // length  # a pack just filled stays the tightest one until it is full
            for chosen, into in bins.take(space, left, each):
                steps.append(_Step(chosen, into, first))
                bins.put(chosen, space - into * length)
                first += len(chosen) * into
                left -= len(chosen) * into
    return steps, bins.count


class _Bins:
    """Open packs by free space; bit `s` of `bits` is set if a pack has `s` tokens free."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.free: list[list[Ids]] = [[] for _ in range(capacity + 1)]
        self.bits = 0
        self.count = 0

    def find_tightest(self, length: int) -> int:
        """Returns the smallest free space that holds `length`, or the capacity if a new pack is needed."""
        fitting = self.bits >> length
        return length + (fitting & -fitting).bit_length() - 1 if fitting else self.capacity

    def take(self, space: int, samples: int, each: int) -> "Iterator[tuple[Ids, int]]":
        """Yields packs with this space for as many samples as fit, with the number of samples that go into each."""
        found = self._pop(space, -(-samples // each))
        full = min(len(found), samples // each)
        if full:
            yield found[:full], each
        if full < len(found):
            yield found[full:], samples - full * each

    def _pop(self, space: int, wanted: int) -> "Ids":
        import numpy as np

        if not self.bits >> space & 1:  # no pack has the full capacity free: begin new ones
            self.count += wanted
            return np.arange(self.count - wanted, self.count, dtype=np.int32)
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
        """Records the space left in packs; a pack without any is finished."""
        if space and len(bins):
            self.free[space].append(bins)
            self.bits |= 1 << space


def _group_by_pack(samples: "Ids", steps: list[_Step], count: int) -> Packs:
    """Reorders samples, sorted by length, into the order of their packs."""
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


def write_packs(file: Path, packs: Packs) -> None:
    """Writes packs as an Arrow stream with one column, `rows`: the samples of each pack."""
    import pyarrow as pa

    rows = pa.ListArray.from_arrays(to_int32_array(packs.starts), to_int32_array(packs.order))
    batch = pa.record_batch([rows], names=["rows"])
    with pa.OSFile(str(file), "wb") as out, pa.ipc.new_stream(out, batch.schema) as stream:
        stream.write_batch(batch)  # a single batch reads back as two arrays of the mapped file


def read_packs(file: Path) -> Packs:
    """Returns packs from a file, memory-mapped."""
    import pyarrow as pa

    rows = pa.ipc.open_stream(pa.memory_map(str(file))).read_next_batch().column(0)
    return Packs(rows.values.to_numpy(), rows.offsets.to_numpy())
