"""Detects full disks, writes folders atomically, hashes files."""

import contextlib
import errno
import hashlib
import os
import shlex
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
# parts of the messages of torch and safetensors, which do not raise OSError for a full disk
DISK_FULL_MESSAGES = (
    "os error 28",
    "os error 27",
    "os error 122",
    "PytorchStreamWriter failed",
    "basic_ios",
    "unexpected pos",
)


def is_disk_full(error: BaseException) -> bool:
    """Returns True if an error, or its cause, is a full disk, an exceeded quota or a file that is too large."""
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return True
    if any(text in str(error) for text in DISK_FULL_MESSAGES):
        return True
    earlier = error.__cause__ or error.__context__  # torch fails a second time while it closes the file
    return earlier is not None and is_disk_full(earlier)


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its type if it has no message."""
    return (str(error) or type(error).__name__).splitlines()[0]


def disk_advice(error: BaseException) -> str | None:
    """Returns what to do about an error of the disk; None for any other error."""
    if is_disk_full(error):
        return "free some space on the disk"
    if isinstance(error, OSError) and error.errno in NOT_WRITABLE:
        return "check who may write there, or use another folder (--out, SFTRUN_CACHE)"
    return None


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yields a new folder that replaces `folder` once everything in it is on the disk; it is removed on an error."""
    new = folder.with_name(f".{folder.name}")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        for path in (*new.rglob("*"), new):
            sync_to_disk(path)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)
    sync_to_disk(folder.parent)


def sync_to_disk(path: Path) -> None:
    """Waits until the content of a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_digest(file: Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as data:
        while block := data.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def describe_special(path: Path) -> str | None:
    """Returns why a path is neither a file nor a folder, such as `is a pipe, not a file`; None if it is one of them."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "is a broken link" if path.is_symlink() else "does not exist"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    kind = kinds.get(stat.S_IFMT(mode))
    return kind and f"is {kind}, not a file"


def is_utf8(path: Path) -> bool:
    """Returns True if the bytes of a path are UTF-8 text, which origins and messages have to be."""
    return not any("\ud800" <= character <= "\udfff" for character in str(path))


def printable(path: Path | str) -> str:
    """Returns a path as text for a message; bytes that are not UTF-8 become `\\udcff`."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def shell_path(path: Path) -> str:
    """Returns a path as it can be typed in a shell: quoted, and relative if it is below the current folder."""
    with contextlib.suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return shlex.quote(str(path))


def cache_folder() -> Path:
    """Returns the folder of caches: SFTRUN_CACHE, else the user's cache folder."""
    own = os.environ.get("SFTRUN_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sftrun"
