"""Disks that take no more, and folders that are on them whole or not at all."""

import contextlib
import errno
import hashlib
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)
# what torch and safetensors say, in errors of their own kinds, where the disk takes no more
SAID = ("os error 28", "os error 27", "os error 122", "PytorchStreamWriter failed", "basic_ios", "unexpected pos")


def full(error: BaseException) -> bool:
    """Whether an error, or what it followed from, is a disk that is full, a quota, or a limit on the size of files."""
    known = isinstance(error, OSError) and error.errno in FULL
    earlier = error.__cause__ or error.__context__  # torch fails once more while it closes the file
    return known or any(words in str(error) for words in SAID) or (earlier is not None and full(earlier))


def said(error: BaseException) -> str:
    """The error in one line."""
    return (str(error) or type(error).__name__).splitlines()[0]


def advice(error: BaseException) -> str | None:
    """What to do about an error of the disk; None for any other."""
    if full(error):
        return "make room on the disk"
    if isinstance(error, OSError) and error.errno in CLOSED:
        return "see who may write there, or name another folder (--out, SFTRUN_CACHE)"
    return None


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder to write into: it takes the place of `folder` when the disk has all of it; what fails is removed."""
    making = folder.with_name(f".{folder.name}")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    try:
        yield making
        for path in (*making.rglob("*"), making):
            sync(path)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    making.rename(folder)
    sync(folder.parent)


def sync(path: Path) -> None:
    """Returns when the disk has a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(file: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    found = hashlib.sha256()
    with file.open("rb") as data:
        while block := data.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def shell_path(path: Path) -> str:
    """Returns a path as it can be typed in a shell: quoted, and relative if it is below the current folder."""
    with contextlib.suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return shlex.quote(str(path))


def cache_folder() -> Path:
    """Where caches are kept: SFTRUN_CACHE, else the user's cache folder."""
    own = os.environ.get("SFTRUN_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sftrun"
