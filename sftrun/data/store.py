"""Prepared samples in memory-mapped Arrow files, and the content-addressed cache that holds them."""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sftrun import files
from sftrun.files import cache_folder, sync_to_disk

IGNORED = -100  # label of tokens without loss; torch's cross-entropy ignores it
DONE = "done.json"  # completion marker of a cache entry: signature and hash of each of its files
MAKING = ".making-"  # prefix of an unfinished entry
SHARED = 0o666  # mode of a lock file: every user of a shared cache may lock an entry


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


def find_entry(key: str, on_damage: Callable[[str], None] = lambda name: None) -> Path | None:
    """Returns the finished cache entry of a key, or None; its files must be those that were published.

    `on_damage` is called with the name of a file that has changed since.
    """
    entry = cache_folder() / "prepared" / key
    listed = _read_marker(entry)
    if listed is None:
        return None
    touched = [name for name, facts in listed.items() if not _has_signature(entry / name, facts["signature"])]
    for name in touched:  # changed, or part of a cache that was copied
        if not _has_digest(entry / name, listed[name]["sha256"]):
            on_damage(str(entry / name))
            return None
    with contextlib.suppress(OSError):  # the cache may be read-only
        if touched:
            _write_marker(entry, {name: facts["sha256"] for name, facts in listed.items()})
        os.utime(entry / DONE)  # marks the entry as used
    return entry


def _has_signature(file: Path, signature: list[int]) -> bool:
    return file.is_file() and list(files.read_signature(file)) == signature


def _has_digest(file: Path, digest: str) -> bool:
    return file.is_file() and files.file_digest(file) == digest


def _read_marker(entry: Path) -> dict[str, Any] | None:
    try:
        listed = json.loads((entry / DONE).read_text())
        whole = all({"signature", "sha256"} <= facts.keys() for facts in listed.values())
    except (OSError, ValueError, AttributeError):
        return None
    return listed if whole else None


def _write_marker(entry: Path, digests: dict[str, str]) -> None:
    listed = {
        name: {"signature": files.read_signature(entry / name), "sha256": digest} for name, digest in digests.items()
    }
    making = entry / f".{DONE}.{os.getpid()}"
    making.write_text(json.dumps(listed))
    sync_to_disk(making)
    making.replace(entry / DONE)


def lock_file(key: str) -> Path:
    """Returns the file that processes lock while they make, take or remove the entry of a key."""
    return cache_folder() / "prepared" / f".{key}.lock"


@contextlib.contextmanager
def idle_entry(key: str) -> Iterator[bool]:
    """A lock on a cache entry that does not wait: yields False if another process, or another user, has the entry."""
    from filelock import FileLock, Timeout

    lock = FileLock(lock_file(key), mode=SHARED)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextlib.contextmanager
def entry_lock(key: str, on_wait: Callable[[], None]) -> Iterator[None]:
    """A lock on a cache entry for making, taking or removing it; `on_wait` is called if another process holds it.

    In a read-only cache, a finished entry is taken without a lock.
    """
    from filelock import FileLock, Timeout

    root = cache_folder() / "prepared"
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_file(key), mode=SHARED)
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
    root = cache_folder() / "prepared"
    for left in root.glob(f"{MAKING}{key}*"):  # a killed process may have left one
        shutil.rmtree(left, ignore_errors=True)
    making = root / f"{MAKING}{key}.{secrets.token_hex(4)}"  # what is left may be another user's
    making.mkdir(parents=True)
    return making


def publish_entry(making: Path, key: str) -> Path:
    """Makes a folder the cache entry of a key, replacing an unfinished one; its files are read-only from then on."""
    digests = {}
    for file in sorted(making.iterdir()):
        file.chmod(file.stat().st_mode & 0o444)
        sync_to_disk(file)
        digests[file.name] = files.file_digest(file)
    _write_marker(making, digests)
    entry = making.parent / key
    files.put_in_place(making, entry)
    return entry


def copy_entry(entry: Path, folder: Path) -> dict[str, str]:
    """Copies the files of a cache entry into a folder, which has no others then; returns the hash of each."""
    listed = _read_marker(entry) or {}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in listed:
        files.copy_file(entry / name, folder / name)
    return {name: facts["sha256"] for name, facts in listed.items()}
