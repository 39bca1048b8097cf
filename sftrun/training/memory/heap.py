"""How much memory a trace of allocations takes from the system under glibc's malloc, gaps between blocks included.

Follows malloc/malloc.c of glibc 2.36: the smallest free chunk that fits is cut, neighbours that are free are joined,
the end of the heap is given back when it is large, and large blocks are mapped on their own, where what is large grows
with each of them that is freed. An aligned block is cut out of a longer chunk, whose ends, if short, go into caches
(seven of a size, and the fast bins), where they are not joined; the objects that take them from there split the gaps.
Most gaps come from that: without the caches they are half of what is measured.
"""

from bisect import bisect_left, insort
from collections.abc import Hashable

ALIGNMENT, HEADER, LEAST = 64, 16, 32  # that torch's blocks start at; bytes before a block; of the smallest chunk
CACHED, EACH = 1040, 7  # the largest chunk that is cached, and how many of a size are
FAST, SMALL = 128, 1024  # the largest chunk of the fast bins; chunks from this size on are joined before they are cut
JOINED = 64 * 2**10  # a freed chunk of this size has the fast bins emptied
PAD, PAGE = 128 * 2**10, 4096
MAPPED, MOST = 128 * 2**10, 32 * 2**20  # what is large at first, and at most


class Heap:
    """The heap of a process; `peak` is the most that it has taken from the system."""

    def __init__(self) -> None:
        self.top = self.end = self.mapped = self.peak = 0
        self.large, self.trim = MAPPED, 2 * MAPPED
        self.cached: dict[int, list[int]] = {}
        self.fast: dict[int, list[int]] = {}
        self.bins: dict[int, list[int]] = {}  # starts of free chunks by size; of equal ones the last one freed is taken
        self.sizes: list[int] = []  # of chunks in bins
        self.starts: dict[int, int] = {}
        self.ends: dict[int, int] = {}
        self.blocks: dict[Hashable, tuple[int | None, int]] = {}

    def allocate(self, name: Hashable, size: int) -> None:
        """Takes an aligned block, as tensors have."""
        size = _chunk(size)
        start, whole = self._take(size + ALIGNMENT + LEAST)
        if start is not None:
            aligned = start + (-(start + HEADER)) % ALIGNMENT
            if 0 < aligned - start < LEAST:
                aligned += ALIGNMENT
            end, rest = start + whole, start + whole - aligned - size
            if aligned > start:
                self._give(start, aligned - start)
            if rest > LEAST:
                self._give(aligned + size, rest)
            else:
                size = end - aligned
            start, whole = aligned, size
        self.blocks[name] = start, whole

    def allocate_small(self, name: Hashable, size: int) -> None:
        """Takes a block that starts anywhere, as those of objects do."""
        size = _chunk(size)
        kept = self.cached.get(size) or (self.fast.get(size) if size <= FAST else None)
        self.blocks[name] = (kept.pop(), size) if kept else self._take(size)

    def release(self, name: Hashable) -> None:
        """Gives a block back."""
        start, size = self.blocks.pop(name)
        if start is not None:
            self._give(start, size)
            return
        self.mapped -= size
        if self.large < size <= MOST:
            self.large, self.trim = size, 2 * size

    def _take(self, size: int) -> tuple[int | None, int]:
        """Where a chunk begins, and its size; nowhere for one that is mapped."""
        if size >= SMALL:
            self._join_fast()
        at = bisect_left(self.sizes, size)
        if at < len(self.sizes):
            whole = self.sizes[at]
            start = self.bins[whole][-1]
            self._drop(start)
            if whole - size < LEAST:
                return start, whole
            self._keep(start + size, whole - size)
            return start, size
        return self._take_new(size)

    def _take_new(self, size: int) -> tuple[int | None, int]:
        if self.end - self.top < size + LEAST:
            if size >= self.large:
                size = -(-size // PAGE) * PAGE
                self.mapped += size
                self.peak = max(self.peak, self.end + self.mapped)
                return None, size
            self.end = _paged(self.top + size + PAD)
            self.peak = max(self.peak, self.end + self.mapped)
        self.top += size
        return self.top - size, size

    def _give(self, start: int, size: int) -> None:
        """Takes a chunk back: into a cache, or joined with what is free beside it."""
        kept = self.cached.setdefault(size, []) if size <= CACHED else None
        if kept is not None and len(kept) < EACH:
            kept.append(start)
        elif size <= FAST:
            self.fast.setdefault(size, []).append(start)
        elif self._join(start, size) >= JOINED:
            self._join_fast()
            if self.end - self.top >= self.trim:
                self.end = _paged(self.top + PAD)

    def _join_fast(self) -> None:
        for size, starts in self.fast.items():
            for start in starts:
                self._join(start, size)
        self.fast.clear()

    def _join(self, start: int, size: int) -> int:
        """Joins a chunk with its free neighbours, or with the end of the heap; how long it is then."""
        before = self.ends.get(start)
        if before is not None:
            size, start = size + self._drop(before), before
        if start + size in self.starts:
            size += self._drop(start + size)
        if start + size == self.top:
            self.top = start
        else:
            self._keep(start, size)
        return size

    def _keep(self, start: int, size: int) -> None:
        alike = self.bins.setdefault(size, [])
        if not alike:
            insort(self.sizes, size)
        alike.append(start)
        self.starts[start], self.ends[start + size] = size, start

    def _drop(self, start: int) -> int:
        size = self.starts.pop(start)
        del self.ends[start + size]
        self.bins[size].remove(start)
        if not self.bins[size]:
            del self.sizes[bisect_left(self.sizes, size)]
        return size


def _chunk(size: int) -> int:
    return max(-(-(size + HEADER // 2) // HEADER) * HEADER, LEAST)


def _paged(end: int) -> int:
    return -(-end // PAGE) * PAGE
