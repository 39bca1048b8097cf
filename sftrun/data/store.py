"""Prepared samples in memory-mapped Arrow files, and the content-addressed cache that holds them."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sftrun.files import cache_folder, sync_to_disk

IGNORED = -100  # label of tokens without loss; torch's cross-entropy ignores it
DONE = "done.json"  # completion marker of a cache entry: the size of each of its files


def make_key(parts: dict[str, Any]) -> str:
    """Returns the cache key of an entry made from `parts`."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Writer:
    """A writer of samples to an Arrow stream file: input_ids, labels (-100 for tokens without loss), origin."""

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
        """Writes samples: ids and trained flags end to end ([tokens]), and the length and the origin of each."""
        import numpy as np
        import pyarrow as pa

        if not len(lengths):
            return
        starts = np.concatenate([[0], np.cumsum(lengths)])
        labels = np.where(trained, ids, np.int32(IGNORED))
        columns = [pa.ListArray.from_arrays(to_int32_array(starts), to_int32_array(values)) for values in (ids, labels)]
        columns.append(to_string_array(origins))
        self.stream.write_batch(pa.record_batch(columns, schema=self.schema))
        for digest, values in zip(self.digests, (lengths.astype(np.int64), ids, trained), strict=True):
            digest.update(np.ascontiguousarray(values).data)
        self.rows += len(lengths)

    def close(self) -> str:
        """Closes the file and returns the hash of its ids and masks, in order."""
        self.stream.close()
        self.out.close()
        return hashlib.sha256(b"".join(digest.digest() for digest in self.digests)).hexdigest()


def to_int32_array(values: Any) -> Any:
    """Returns numbers as an Arrow array of 32 bits, without `pyarrow.array`, which imports pandas."""
    import numpy as np
    import pyarrow as pa

    return pa.Array.from_buffers(pa.int32(), len(values), [None, pa.py_buffer(np.ascontiguousarray(values, np.int32))])


def to_string_array(values: Sequence[str]) -> Any:
    """Returns texts as an Arrow array."""
    import numpy as np
    import pyarrow as pa

    encoded = [value.encode() for value in values]
    starts = np.concatenate([[0], np.cumsum([len(value) for value in encoded])]).astype(np.int32)
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(starts), pa.py_buffer(b"".join(encoded)))


def find_entry(key: str) -> Path | None:
    """Returns the finished cache entry of a key, or None; its files must have the sizes that its marker lists."""
    entry = cache_folder() / "prepared" / key
    try:
        sizes = json.loads((entry / DONE).read_text())
        whole = all((entry / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return None
    if not whole:
        return None
    with contextlib.suppress(OSError):  # the cache may be read-only
        os.utime(entry / DONE)  # marks the entry as used
    return entry


@contextlib.contextmanager
def idle_entry(key: str) -> Iterator[bool]:
    """A lock on a cache entry that does not wait: yields False if another process uses the entry."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(cache_folder() / "prepared" / f".{key}.lock", timeout=0):
            yield True
    except Timeout:
        yield False


@contextlib.contextmanager
def entry_lock(key: str, on_wait: Callable[[], None]) -> Iterator[None]:
    """A lock on a cache entry for making, taking or removing it; `on_wait` is called if another process holds it.

    In a read-only cache, a finished entry is taken without a lock.
    """
    from filelock import FileLock, Timeout

    root = cache_folder() / "prepared"
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / f".{key}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_wait()
        lock.acquire()
    except OSError:
        if find_entry(key) is None:
            raise
    try:
        yield
    finally:
        lock.release()


def begin_entry(key: str) -> Path:
    """Creates a folder in the cache, invisible to `find_entry` until published; the caller holds the key's lock."""
    making = cache_folder() / "prepared" / f".making-{key}"
    shutil.rmtree(making, ignore_errors=True)  # a killed process may have left one
    making.mkdir(parents=True)
    return making


def publish_entry(making: Path, key: str) -> Path:
    """Makes a folder the cache entry of a key, replacing an unfinished one."""
    sizes = {file.name: file.stat().st_size for file in sorted(making.iterdir())}
    for name in sizes:
        sync_to_disk(making / name)
    (making / DONE).write_text(json.dumps(sizes))
    sync_to_disk(making / DONE)
    entry = making.parent / key
    shutil.rmtree(entry, ignore_errors=True)
    making.rename(entry)
    return entry


def link_files(entry: Path, folder: Path) -> None:
    """Puts the files of a cache entry into a folder, as hard links if the file system allows it, else as copies."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in entry.iterdir():
        target = folder / file.name
        target.unlink(missing_ok=True)
        try:
            os.link(file, target)
        except OSError:
            shutil.copy2(file, target)
