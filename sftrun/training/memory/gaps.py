"""What a training process takes from the system for its tensors: their bytes, and the gaps that malloc leaves.

Between tensors lie the objects that stand for them. Their sizes and order are those of an operation, and the free
chunks those of a process before its first step, as a record of all calls of malloc and malloc_info(3) had them in
training with torch 2.13: of the objects, chunks of 48 bytes matter most, as they fit into the ends of aligned blocks.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable

from sftrun.training.memory.heap import Heap

NODE = (600, 40)  # bytes of a node of the graph, and of its edges: they stay until the graph is gone
STORAGE = (104,)  # made before a tensor's block, and what is made after it: all go with it
TENSORS = (184, 24, 24, 184)
FREE = {80: 160, 96: 210, 112: 80, 128: 40, 160: 60, 20480: 50}  # chunks by size


def taken(trace: Iterable[tuple[int, int, int]], states: Iterable[int]) -> int:
    """Bytes that a heap takes at most for two steps of a trace, as `Live` has it; optimizer states come in between."""
    heap, steps = Heap(), list(trace)
    before = _used(heap)
    _replay(heap, steps)
    for number, size in enumerate(states):
        heap.allocate(("state", number), size)
    _replay(heap, steps)
    return heap.peak - before


def _used(heap: Heap) -> int:
    """Makes a heap one that was used before: chunks are free, with others between them."""
    sizes = [size for size, count in FREE.items() for _ in range(count)]
    for number, size in enumerate(sizes):
        heap.allocate_small(("free", number), size - 8)
        heap.allocate_small(("kept", number), 24)
    for number in range(len(sizes)):
        heap.release(("free", number))
    return heap.end


def _replay(heap: Heap, trace: list[tuple[int, int, int]]) -> None:
    """One step; what it leaves, which are gradients and the graph of the forward pass, is given back at its end."""
    left: dict[int, list[Hashable]] = {}
    nodes: defaultdict[int, list[Hashable]] = defaultdict(list)
    of, alive = {number: graph for number, size, graph in trace if size}, Counter[int]()
    for number, size, graph in trace:
        if size:
            if graph:
                nodes[graph] += _objects(heap, ("node", number), NODE)
            before = _objects(heap, ("before", number), STORAGE)
            heap.allocate(number, size)
            left[number] = [number, *before, *_objects(heap, ("after", number), TENSORS)]
            alive[graph] += 1
        elif number in left:
            _release(heap, left.pop(number))
            alive[of[number]] -= 1
            if of[number] > 1 and not alive[of[number]]:
                _release(heap, nodes.pop(of[number]))
    for names in (*left.values(), *nodes.values()):
        _release(heap, names)


def _objects(heap: Heap, of: Hashable, sizes: tuple[int, ...]) -> list[Hashable]:
    names: list[Hashable] = [(of, index) for index in range(len(sizes))]
    for name, size in zip(names, sizes, strict=True):
        heap.allocate_small(name, size)
    return names


def _release(heap: Heap, names: list[Hashable]) -> None:
    for name in names:
        heap.release(name)
