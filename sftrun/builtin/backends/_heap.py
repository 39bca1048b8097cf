"""How much memory a trace of allocations takes from the system under glibc's malloc, gaps between blocks included.

Follows malloc/malloc.c of glibc: the smallest free chunk that fits, neighbours joined, the end of the heap given back
when it is large, and large blocks mapped on their own, where what is large grows with each of them that is freed.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable

PAD = 128 * 2**10  # M_TOP_PAD
MOST = 32 * 2**20  # DEFAULT_MMAP_THRESHOLD_MAX: a larger block is always mapped
HEADER, LEAST, ALIGNMENT = 16, 32, 64  # bytes before a block, of the smallest chunk, that torch's blocks start at
# bytes of the objects that stand for an operation and its tensor: chosen so that peaks fit those that were measured
NODES = (24, 56, 88)


class Heap:
    """The heap of a process; `peak` is the most that it has taken from the system."""

    def __init__(self) -> None:
        self.top = self.end = self.mapped = self.peak = 0
        self.large, self.trim = MOST, 2 * MOST  # imports and loading have mapped and freed large blocks already
        self.free: list[tuple[int, int]] = []  # size and start, the smallest first
        self.starts: dict[int, int] = {}
        self.ends: dict[int, int] = {}
        self.blocks: dict[object, tuple[int | None, int]] = {}

    def allocate(self, name: object, size: int) -> None:
        """Takes an aligned block: out of a chunk that is larger, whose ends are free again.

        Before glibc 2.38 a chunk is looked for that holds the block wherever it starts, so the gap that a block of the
        same size has left is too small: that is where most gaps come from.
        """
        size = -(-(size + HEADER // 2) // HEADER) * HEADER
        wanted = size + ALIGNMENT + LEAST
        start = self._place(wanted)
        if start is not None:
            aligned = start + (-(start + HEADER)) % ALIGNMENT
            if 0 < aligned - start < LEAST:
                aligned += ALIGNMENT
            self.peak = max(self.peak, self.end + self.mapped)
            self._free(aligned + size, start + wanted - aligned - size)
            self._free(start, aligned - start)
            start = aligned
        self.blocks[name] = start, size
        self.peak = max(self.peak, self.end + self.mapped)

    def allocate_small(self, name: object, size: int) -> None:
        """Takes a block that starts anywhere, as those of objects do."""
        size = -(-(size + HEADER // 2) // HEADER) * HEADER
        self.blocks[name] = self._place(size), size

    def _place(self, size: int) -> int | None:
        """Where a block of the heap begins; None for one that is mapped."""
        at = bisect_left(self.free, (size, 0))
        if at < len(self.free):
            whole, start = self.free[at]
            self._drop(start, whole)
            if whole > size:
                self._keep(start + size, whole - size)
            return start
        if self.end - self.top < size:
            if size >= self.large:
                self.mapped += size
                return None
            self.end = self.top + size + PAD
        self.top += size
        return self.top - size

    def release(self, name: object) -> None:
        """Gives a block back."""
        start, size = self.blocks.pop(name)
        if start is None:
            self.mapped -= size
            if self.large < size <= MOST:
                self.large, self.trim = size, 2 * size
            return
        self._free(start, size)

    def _free(self, start: int, size: int) -> None:
        """Joins a chunk with its free neighbours, or with the end of the heap."""
        if not size:
            return
        before, after = self.ends.get(start), start + size
        if before is not None:
            length = self.starts[before]
            self._drop(before, length)
            start, size = before, size + length
        if after in self.starts:
            length = self.starts[after]
            self._drop(after, length)
            size += length
        if start + size != self.top:
            self._keep(start, size)
            return
        self.top = start
        if self.end - self.top > self.trim:
            self.end = self.top + PAD

    def _keep(self, start: int, size: int) -> None:
        insort(self.free, (size, start))
        self.starts[start], self.ends[start + size] = size, start

    def _drop(self, start: int, size: int) -> None:
        del self.free[bisect_left(self.free, (size, start))]
        del self.starts[start], self.ends[start + size]


def replayed(trace: Iterable[tuple[int, int]], states: Iterable[int]) -> int:
    """Bytes that a heap takes at most for two steps of a trace, as `Live` has it; optimizer states come in between."""
    heap, steps = Heap(), list(trace)
    _replay(heap, steps)
    for number, size in enumerate(states):
        heap.allocate(("state", number), size)
    _replay(heap, steps)
    return heap.peak


def _replay(heap: Heap, trace: list[tuple[int, int]]) -> None:
    """One step; what it leaves, which are gradients and the objects of the graph, is given back at its end."""
    made: set[tuple[str, int, int]] = set()
    for number, size in trace:
        if size:
            heap.allocate(("tensor", number, 0), size)
            made.add(("tensor", number, 0))
            for small in NODES:  # they take the ends of gaps, into which no tensor of that size fits then
                heap.allocate_small(("node", number, small), small)
                made.add(("node", number, small))
        elif ("tensor", number, 0) in made:
            heap.release(("tensor", number, 0))
            made.remove(("tensor", number, 0))
    for name in sorted(made):
        heap.release(name)
