"""Prepared samples as memory-mapped Arrow, and the content-addressed cache they are kept in."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sftrun.files import cache_folder

IGNORED = -100  # the label that torch's cross-entropy leaves out
DONE = "done.json"


def key_of(parts: dict[str, Any]) -> str:
    """The address of what was made from `parts`."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Writer:
    """Writes samples to an Arrow stream file: input_ids, labels (-100 where no loss is), origin."""

    def __init__(self, file: Path) -> None:
        import pyarrow as pa

        self.schema = pa.schema(
            [("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32())), ("origin", pa.string())]
        )
        self.out = pa.OSFile(str(file), "wb")
        self.stream = pa.ipc.new_stream(self.out, self.schema)
        self.digests = [hashlib.sha256() for _ in range(3)]
        self.rows = 0

    def add(self, ids: Any, trained: Any, lengths: Any, origins: Sequence[str]) -> None:
        """Adds samples: ids and trained flags end to end ([tokens]), and the length and the origin of each."""
        import numpy as np
        import pyarrow as pa

        if not len(lengths):
            return
        starts = np.concatenate([[0], np.cumsum(lengths)])
        labels = np.where(trained, ids, np.int32(IGNORED))
        columns = [pa.ListArray.from_arrays(integers(starts), integers(values)) for values in (ids, labels)]
        columns.append(_texts(origins))
        self.stream.write_batch(pa.record_batch(columns, schema=self.schema))
        for digest, values in zip(self.digests, (lengths.astype(np.int64), ids, trained), strict=True):
            digest.update(np.ascontiguousarray(values).data)
        self.rows += len(lengths)

    def close(self) -> str:
        """Finishes the file and returns the hash of its ids and masks, in order."""
        self.stream.close()
        self.out.close()
        return hashlib.sha256(b"".join(digest.digest() for digest in self.digests)).hexdigest()


def integers(values: Any) -> Any:
    """Numbers as an Arrow array of 32 bits; `pyarrow.array` would import pandas, to look whether they are its own."""
    import numpy as np
    import pyarrow as pa

    return pa.Array.from_buffers(pa.int32(), len(values), [None, pa.py_buffer(np.ascontiguousarray(values, np.int32))])


def _texts(values: Sequence[str]) -> Any:
    """Texts as an Arrow array."""
    import numpy as np
    import pyarrow as pa

    encoded = [value.encode() for value in values]
    starts = np.concatenate([[0], np.cumsum([len(value) for value in encoded])]).astype(np.int32)
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(starts), pa.py_buffer(b"".join(encoded)))


def find(key: str) -> Path | None:
    """The finished entry of the cache for a key; one that is not whole does not count."""
    entry = cache_folder() / "prepared" / key
    try:
        sizes = json.loads((entry / DONE).read_text())
        whole = all((entry / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return None
    if not whole:
        return None
    with contextlib.suppress(OSError):  # a cache that may only be read
        os.utime(entry / DONE)  # so that it counts as used
    return entry


@contextlib.contextmanager
def free(key: str) -> Iterator[bool]:
    """Whether no other process is at the entry of a key; if so, none comes to it meanwhile."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(cache_folder() / "prepared" / f".{key}.lock", timeout=0):
            yield True
    except Timeout:
        yield False


@contextlib.contextmanager
def locked(key: str, waiting: Callable[[], None]) -> Iterator[None]:
    """Only one process at a time makes, takes or removes the entry of a key; `waiting` is called where another does.

    In a cache that may only be read, nobody does more than take it.
    """
    from filelock import FileLock, Timeout

    root = cache_folder() / "prepared"
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / f".{key}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waiting()
        lock.acquire()
    except OSError:
        if find(key) is None:
            raise
    try:
        yield
    finally:
        lock.release()


def begin(key: str) -> Path:
    """A new folder in the cache, invisible to `find` until it is published; for whoever holds the key's lock."""
    making = cache_folder() / "prepared" / f".making-{key}"
    shutil.rmtree(making, ignore_errors=True)  # what a process that was killed has left
    making.mkdir(parents=True)
    return making


def publish(making: Path, key: str) -> Path:
    """Makes a finished folder the cache's entry for a key; an entry that is not whole is replaced."""
    sizes = {file.name: file.stat().st_size for file in sorted(making.iterdir())}
    for name in sizes:
        _sync(making / name)
    (making / DONE).write_text(json.dumps(sizes))
    _sync(making / DONE)
    entry = making.parent / key
    shutil.rmtree(entry, ignore_errors=True)
    making.rename(entry)
    return entry


def _sync(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


def link(entry: Path, folder: Path) -> None:
    """Puts the files of a cache entry into a folder: as hard links where the file system can, else as copies."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in entry.iterdir():
        target = folder / file.name
        target.unlink(missing_ok=True)
        try:
            os.link(file, target)
        except OSError:
            shutil.copy2(file, target)
