"""Live bytes of a computation that only pretends: what PyTorch's caching of tensors would hold, operation by operation.

The idea is that of torch.distributed._tools.mem_tracker: a dispatch mode sees each operation's outputs, and a weak
reference says when their storage goes. On fake tensors, which have shapes and no data, nothing is computed.
"""

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages that are made within it, by the phase in which each was made.

    `peak` has what was alive, by phase, when it was most. `trace` has every storage's number, its size, and the graph
    whose node came with it, in order; a second entry of a number, with size 0, is its end. Graph 1 is that of the
    forward pass, each of the others of what is computed again at a time in the backward pass; 0 is none. Storages of
    `known` tensors do not count.
    """

    def __init__(self, phase: str, known: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase = phase
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.most = self.total = 0
        self.trace: list[tuple[int, int, int]] = []
        self.forward, self.graphs, self.graph = True, 1, 0
        self.seen: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()
        for tensor in known:
            self.seen[tensor.untyped_storage()] = ["", 0]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage())
        if self.total > self.most:
            self.most, self.peak = self.total, self.now.copy()
        return made

    def _add(self, storage: Any) -> None:
        if storage in self.seen:
            return
        entry = self.seen[storage] = [self.phase, storage.nbytes()]
        self._count(entry, 1)
        number = len(self.trace)
        self.trace.append((number, entry[1], self._graph()))
        weakref.finalize(storage, self._end, entry, number)

    def _graph(self) -> int:
        if not torch.is_grad_enabled():
            self.graph = 0
        elif self.forward:
            self.graph = 1
        elif self.graph < 2:
            self.graphs += 1
            self.graph = self.graphs
        return self.graph

    def _end(self, entry: list[Any], number: int) -> None:
        self._count(entry, -1)
        self.trace.append((number, 0, 0))

    def _count(self, entry: list[Any], sign: int) -> None:
        phase, size = entry
        self.now[phase] += sign * size
        self.total += sign * size

    def belongs(self, tensor: torch.Tensor, phase: str) -> None:
        """Counts a tensor that is there under another phase than that in which it was made."""
        entry = self.seen.get(tensor.untyped_storage())
        if entry is not None and entry[1]:
            self._count(entry, -1)
            entry[0] = phase
            self._count(entry, 1)

    def leaves(self, tensor: torch.Tensor) -> None:
        """Counts a tensor no more; in the trace it stays until its end."""
        entry = self.seen.get(tensor.untyped_storage())
        if entry is not None and entry[1]:
            self._count(entry, -1)
            entry[1] = 0
