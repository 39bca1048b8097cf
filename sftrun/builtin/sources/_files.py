"""What sources of files share: where the files are, how they are read, and how validation rows are split off."""

import codecs
import contextlib
import functools
import hashlib
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Annotated, Any, NoReturn, TextIO

import sftrun
from sftrun.builtin.sources import _layout

BLOCK = 1 << 20
NUL = "holds a NUL character: it is no text, or in another encoding"
UNDECODED = re.compile("[\ud800-\udfff]")


class FileOptions(sftrun.Options):
    """Where the rows are."""

    path: Annotated[
        sftrun.PathText,
        sftrun.Meta(description="A file, a pattern such as data/*.jsonl, or a folder with train, val and test."),
    ]
    val_share: Annotated[
        float,
        sftrun.Meta(ge=0, lt=1, description="Without val: share of the training rows, by hash, used for val."),
    ] = 0.05


class Files:
    """The files that the options name, split by split. `suffixes` are those of a split's file in a folder."""

    def __init__(self, options: FileOptions, *suffixes: str) -> None:
        self.options = options
        self.suffixes = suffixes

    @functools.cached_property
    def layout(self) -> _layout.Layout:
        return _layout.layout(self.options.path, self.suffixes)

    def ready(self) -> list[sftrun.Problem]:
        """What is wrong with the files, or worth saying about them."""
        return self.layout.problems

    def splits(self) -> list[str]:
        there = self.layout.files
        return [split for split in _layout.SPLITS if split in there or (split == "val" and self.options.val_share)]

    def of(self, split: str) -> list[tuple[str, Path]]:
        """The files to read for a split, with the names that they have in origins; raises UserError."""
        wrong = [problem for problem in self.layout.problems if problem.severity == "error"]
        if wrong:
            raise sftrun.UserError(wrong)
        files = self.layout.files
        found = files.get(split) or (files["train"] if split == "val" and self.options.val_share else [])
        return [(self._name(file), file) for file in found]

    def keep(self, split: str) -> Callable[[bytes], bool] | None:
        """Tells, by its content, whether a row of these files is of the split; None where all are."""
        if split == "test" or "val" in self.layout.files or not self.options.val_share:
            return None
        # by content, so that equal rows are never on both sides and an added row moves no other
        limit = int(self.options.val_share * 2**64).to_bytes(8, "big")
        hashed = functools.partial(hashlib.blake2b, digest_size=8)
        if split == "val":
            return lambda content: hashed(content).digest() < limit
        return lambda content: hashed(content).digest() >= limit

    def fingerprint(self, *settings: object) -> str:
        """A hash of all files, and of the options that decide what rows they hold."""
        digest = hashlib.sha256(repr((self.options.val_share, *settings)).encode())
        for split, files in self.layout.files.items():
            for file in files:
                with _readable(file):
                    digest.update(f"\0{split}\0{self._name(file)}\0{file.stat().st_size}\0".encode())
                    add_file(file, digest.update)
        return digest.hexdigest()

    def locate(self, origin: str) -> str:
        return str(self.layout.root / origin)

    def _name(self, file: Path) -> str:
        return file.relative_to(self.layout.root).as_posix()


def add_file(file: Path, update: Callable[[bytes], Any]) -> None:
    """Gives the bytes of a file to a hash, block by block."""
    with file.open("rb", buffering=0) as stream:
        while block := stream.read(BLOCK):
            update(block)


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        damaged(file, error)


def opened(file: Path) -> IO[bytes]:
    """The bytes of a file, decompressed as they are read; raises UserError for one that cannot be opened."""
    with _readable(file):
        if file.suffix not in _layout.COMPRESSED:
            return file.open("rb", buffering=BLOCK)
        import pyarrow as pa

        codec = {".gz": "gzip", ".zst": "zstd"}[file.suffix]
        raw: Any = pa.input_stream(str(file), compression=codec)
        return io.BufferedReader(raw, BLOCK)


def opened_text(file: Path, encoding: str, newline: str | None = None) -> TextIO:
    """The text of a file, without a byte order mark; bytes that are no text are what `flaw` finds."""
    if codecs.lookup(encoding).name == "utf-8":
        encoding = "utf-8-sig"
    return io.TextIOWrapper(opened(file), encoding, errors="surrogateescape", newline=newline)


def flaw(text: str) -> str | None:
    """Why a text of a file that `opened_text` opened cannot be used."""
    if "\0" in text:
        return NUL
    return "is not text in the encoding of the file" if not text.isascii() and UNDECODED.search(text) else None


def unknown_encoding(encoding: str) -> Iterator[sftrun.Problem]:
    """A problem for an encoding that Python does not know, or that is not one of text."""
    try:
        io.TextIOWrapper(io.BytesIO(), encoding)
    except LookupError:
        yield sftrun.Problem(f"unknown encoding {encoding!r}", hint="write utf-8, utf-16, cp1252, latin-1 or another")


def damaged(file: Path, error: Exception, line: int | None = None) -> NoReturn:
    """Raises the UserError for a file that cannot be read further: the rows behind that place would be lost."""
    reason = getattr(error, "strerror", None) or str(error)
    what = "cannot be read" if line is None else "cannot be read from here on"
    hint = "it is not whole: copy or download it again" if file.suffix in _layout.COMPRESSED else None
    place = sftrun.errors.Place(str(file), line)
    raise sftrun.UserError(sftrun.Problem(f"{what}: {reason}", place, hint=hint)) from error


def at(file: Path, line: int | None, message: str, hint: str | None = None) -> sftrun.UserError:
    """The error for a file that cannot be read as what it is said to be."""
    return sftrun.UserError(sftrun.Problem(message, sftrun.errors.Place(str(file), line), hint=hint))
