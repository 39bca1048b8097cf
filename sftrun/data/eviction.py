"""What the cache holds, and how it is emptied while others may be at work."""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from sftrun import files
from sftrun.data import store

DAY = 86400.0
LEFT_BEHIND = "left behind"  # by processes that were killed; nothing at work is this old
KINDS = ("prepared", "models", LEFT_BEHIND)


class Entry(msgspec.Struct, frozen=True):
    """A folder in the cache: bytes of it, those that its removal would free, and seconds since it was last used.

    Files of prepared data are hard links where the file system has them: what a run directory holds too is not freed.
    """

    kind: str
    path: Path
    size: int
    frees: int
    age: float


def entries() -> list[Entry]:
    """All that the cache holds."""
    root = files.cache_folder()
    found = [_entry("prepared", path) for path in _folders(root / "prepared") if path.name[0] != "."]
    found += [_entry("models", path) for path in _folders(root / "models") if path.name[0] != "."]
    hidden = [path for folder in (root, root / "models") for path in _folders(folder) if path.name[0] == "."]
    return [*found, *(entry for entry in (_entry(LEFT_BEHIND, path) for path in hidden) if entry.age > DAY)]


def clear(older_than: float = 0) -> list[Entry]:
    """Removes prepared data not used for so many seconds, and what was left behind; returns what has gone.

    Data that a process is making or taking stay, and so do models of a few MB that one may be about to load.
    """
    return [entry for entry in entries() if entry.age >= older_than and _removed(entry)]


def _removed(entry: Entry) -> bool:
    if entry.kind == "models":
        return False
    if entry.kind == LEFT_BEHIND:
        shutil.rmtree(entry.path, ignore_errors=True)
        return True
    with store.free(entry.path.name) as mine:  # not one that is made, or taken, just now
        if mine:
            shutil.rmtree(entry.path, ignore_errors=True)
        return mine


def _folders(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.glob("*")) if path.is_dir())


def _entry(kind: str, path: Path) -> Entry:
    size = frees = 0
    used = 0.0
    for file in [path, *path.rglob("*")]:
        with contextlib.suppress(OSError):  # someone else removes it just now
            found = file.stat()
            used = max(used, found.st_mtime)
            if os.path.isfile(file):
                size, frees = size + found.st_size, frees + found.st_size * (found.st_nlink == 1)
    return Entry(kind, path, size, frees, max(time.time() - used, 0))
