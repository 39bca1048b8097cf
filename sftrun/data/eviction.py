"""Eviction: lists what the cache holds, and clears it while other processes may use it."""

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from sftrun import files
from sftrun.data import store

DAY = 86400.0  # seconds; a hidden folder older than this belongs to a killed process
LEFT_BEHIND = "left behind"
KINDS = ("prepared", "models", LEFT_BEHIND)


class CacheEntry(msgspec.Struct, frozen=True):
    """A folder in the cache: its bytes, and seconds since its last use."""

    kind: str
    path: Path
    size: int
    age: float


def list_entries() -> list[CacheEntry]:
    """Returns every entry of the cache."""
    root = files.cache_folder()
    found = [_measure_entry("prepared", path) for path in _list_folders(root / "prepared") if path.name[0] != "."]
    found += [_measure_entry("models", path) for path in _list_folders(root / "models") if path.name[0] != "."]
    found += [_measure_entry(LEFT_BEHIND, path) for path in _list_unfinished(root / "prepared")]
    hidden = [path for folder in (root, root / "models") for path in _list_folders(folder) if path.name[0] == "."]
    return [*found, *(entry for entry in (_measure_entry(LEFT_BEHIND, path) for path in hidden) if entry.age > DAY)]


def _list_unfinished(root: Path) -> Iterator[Path]:
    """Yields the folders of preparations whose process was killed: nobody locks their key."""
    for path in _list_folders(root):
        if path.name.startswith(store.MAKING):
            with store.idle_entry(_get_key(path)) as is_idle:
                if is_idle:
                    yield path


def _get_key(path: Path) -> str:
    """Returns the cache key of an entry, or of an unfinished one."""
    return path.name.removeprefix(store.MAKING).partition(".")[0]


def clear(older_than: float = 0) -> list[CacheEntry]:
    """Removes prepared data unused for `older_than` seconds, and left-overs of killed processes; returns these entries.

    Entries that another process uses are kept, and so are models: they are small and another process may load one.
    """
    return [entry for entry in list_entries() if entry.age >= older_than and _remove(entry)]


def _remove(entry: CacheEntry) -> bool:
    if entry.kind == "models":
        return False
    if entry.path.parent.name != "prepared":
        shutil.rmtree(entry.path, ignore_errors=True)
        return not entry.path.exists()
    with store.idle_entry(_get_key(entry.path)) as is_idle:  # False while another process makes or takes it
        if is_idle:
            shutil.rmtree(entry.path, ignore_errors=True)
            with contextlib.suppress(OSError):  # a process that waits for it makes the entry anew, without harm
                store.lock_file(_get_key(entry.path)).unlink()
    return is_idle and not entry.path.exists()


def _list_folders(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.glob("*")) if path.is_dir())


def _measure_entry(kind: str, path: Path) -> CacheEntry:
    size, used = 0, 0.0
    for file in [path, *path.rglob("*")]:
        with contextlib.suppress(OSError):  # another process may be removing it
            found = file.stat()
            used = max(used, found.st_mtime)
            size += found.st_size if file.is_file() else 0
    return CacheEntry(kind, path, size, max(time.time() - used, 0))
