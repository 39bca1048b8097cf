"""Detects full disks, writes folders atomically, hashes and seals files."""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shlex
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from sftrun.errors import UserError

__all__ = [
    "atomic_folder",
    "cache_folder",
    "describe_special",
    "disk_advice",
    "file_digest",
    "first_line",
    "is_disk_full",
    "is_utf8",
    "iter_lines",
    "printable",
    "read_sealed",
    "seal",
    "shell_path",
    "sync_to_disk",
]

UNFINISHED_FOLDER = re.compile(r"\..+\.[0-9a-f]{8}")  # the name that `hidden_folder` gives
UNFINISHED_FILE = re.compile(r"\..+\.(json|yaml|html|md|jsonl)\.\d+")  # a file and the process that wrote it
CLONE = 0x40049409  # FICLONE of Linux: two files share their blocks until one of them changes
LONGEST_LINE = 1 << 26  # bytes; a longer line is not read into memory
BLOCK = 1 << 20  # bytes of such a line that are skipped at a time
SETTLED = 2.0  # seconds; a younger file may change again within the resolution of its time stamps

SEAL = "sha256"  # key of a sealed file: the hash of the others

Signature = tuple[int, int, int, int]
"""Size, times of change in nanoseconds, and inode of a file: equal as long as nobody writes to it."""

_digests: dict[Path, tuple[Signature, str]] = {}

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
    new = hidden_folder(folder)
    try:
        yield new
        readable = new.stat().st_mode & 0o666  # some libraries write files that only their owner may read
        for path in (*new.rglob("*"), new):
            if path.is_file():
                path.chmod(path.stat().st_mode | readable)
            sync_to_disk(path)
        put_in_place(new, folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    sync_to_disk(folder.parent)


def iter_lines(stream: IO[bytes]) -> Iterator[bytes | None]:
    """Yields the lines of a file; None for a line that is longer than LONGEST_LINE, which is skipped."""
    while line := stream.readline(LONGEST_LINE):
        if len(line) < LONGEST_LINE or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(BLOCK)
        yield None


def hidden_folder(folder: Path) -> Path:
    """Creates an empty folder next to `folder`, under a hidden name that no other process uses."""
    new = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    new.mkdir(parents=True)
    return new


def put_in_place(new: Path, folder: Path) -> None:
    """Renames a folder to `folder`; an older `folder` is moved aside first, and removed last."""
    old = hidden_folder(folder)
    with contextlib.suppress(FileNotFoundError):
        folder.rename(old)  # replaces the empty folder
    try:
        new.rename(folder)
    finally:
        shutil.rmtree(old, ignore_errors=True)


def remove_unfinished(parent: Path) -> None:
    """Removes what killed processes left of folders and files that they wrote atomically, while none is at work."""
    for path in parent.glob(".*"):
        if path.is_dir() and UNFINISHED_FOLDER.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
        elif path.is_file() and UNFINISHED_FILE.fullmatch(path.name):
            path.unlink(missing_ok=True)


def copy_file(source: Path, target: Path) -> None:
    """Copies the content of a file; the copy takes no space on file systems that can share blocks until a change."""
    import fcntl

    target.unlink(missing_ok=True)  # it may be a link to the source, or to another file
    with source.open("rb") as old, target.open("wb") as new, contextlib.suppress(OSError):
        fcntl.ioctl(new.fileno(), CLONE, old.fileno())
        return
    shutil.copyfile(source, target)


def sync_to_disk(path: Path) -> None:
    """Waits until the content of a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_signature(file: Path) -> Signature:
    """Returns a file's size, times of change and inode."""
    found = file.stat()
    return (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def file_digest(file: Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hexadecimal; a process reads a file again only if it has changed."""
    before = read_signature(file)
    known = _digests.get(file)
    if known and known[0] == before:
        return known[1]
    digest = hashlib.sha256()
    with file.open("rb") as data:
        while block := data.read(1 << 20):
            digest.update(block)
    if before == read_signature(file) and time.time() - before[2] / 1e9 > SETTLED:
        _digests[file] = before, digest.hexdigest()
    return digest.hexdigest()


def seal(data: dict[str, Any]) -> dict[str, Any]:
    """Returns data for a JSON file, with the hash of their content."""
    return {**data, SEAL: _content_digest(data)}


def read_sealed(file: Path) -> dict[str, Any]:
    """Returns the data of a JSON file that were sealed; raises UserError if they have changed."""
    data = parse_object(file.read_bytes()) or {}
    content = {key: value for key, value in data.items() if key != SEAL}
    if data.get(SEAL) != _content_digest(content):
        raise UserError(f"{file} is not what the run wrote: it was edited, or is cut off or damaged")
    return content


def parse_object(text: bytes) -> dict[str, Any] | None:
    """Returns a JSON object; None for any other text."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _content_digest(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


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
    """Returns the folder of caches: SFTRUN_CACHE, else the user's cache folder; raises UserError if it is none."""
    own = os.environ.get("SFTRUN_CACHE")
    try:
        folder = Path(own).expanduser() if own else _user_cache() / "sftrun"
    except RuntimeError:  # no HOME, and no user of this number
        hint = "set SFTRUN_CACHE to a folder that this user may write to"
        raise UserError("this user has no home folder for the cache", hint=hint) from None
    if file := find_file_above(folder):
        name = "SFTRUN_CACHE" if own else "the cache"
        where = "" if file == folder else f", below {file}"
        raise UserError(f"{name} is {folder}{where}, a file", hint="set SFTRUN_CACHE to a folder, or remove the file")
    return folder


def find_file_above(folder: Path) -> Path | None:
    """Returns the file that a folder cannot be made in the place of, or below; None if there is none."""
    there = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), None)
    return there if there is not None and not there.is_dir() else None


def _user_cache() -> Path:
    own = os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else Path.home() / ".cache"
