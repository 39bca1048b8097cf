"""Shared parts of sources of files: finding and reading files, and splitting off validation rows."""

import abc
import codecs
import contextlib
import functools
import hashlib
import io
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, NoReturn

import msgspec

import sftrun
from sftrun.builtin.sources import _holdout, _layout, _names, _start

BLOCK = 1 << 20  # bytes read at a time
LONGEST_ROW = sftrun.files.LONGEST_LINE  # bytes, or characters of a text; a longer row is not read into memory
TOO_LARGE = f"a row has more than {LONGEST_ROW >> 20} MiB, and is not read"
NUL = "contains a NUL character: it is not text, or in another encoding"
UNDECODED = re.compile("[\ud800-\udfff]")


class FileOptions(sftrun.Options):
    """Path of the rows, and the share of them held out for validation."""

    path: Annotated[
        sftrun.PathText,
        sftrun.Meta(description="A file, a pattern such as data/*.jsonl, or a folder with train, val and test."),
    ]
    val_share: Annotated[
        float,
        sftrun.Meta(
            ge=0,
            lt=1,
            description="Share of the training rows held out as val, by hash, if the path has no val; "
            "at least 10 rows, or every fifth of fewer than 50.",
        ),
    ] = 0.05


class FileSource(abc.ABC):
    """A source that reads files, split by split; a subclass adds `suffixes` and `rows`."""

    suffixes: ClassVar[tuple[str, ...]]
    """Suffixes of a split's files in a folder."""
    texts: ClassVar[bool] = False
    """True if a file is a text, and no table of rows."""

    def __init__(self, options: FileOptions) -> None:
        self.options = options
        self._scan: _holdout.Choose | None = None

    @functools.cached_property
    def layout(self) -> _layout.Layout:
        """The files that the path names."""
        return _layout.find_layout(self.options.path, self.suffixes, self.texts)

    def check_machine(self, recipe: sftrun.Recipe) -> Iterable[sftrun.Problem]:
        problems, share = self.layout.problems, self.options.val_share
        yield from problems
        if share and "val" not in self.layout.files and all(each.severity == "warning" for each in problems):
            yield from _holdout.check_holdout(self.holdout, share)

    def splits(self) -> list[str]:
        files = self.layout.files
        return [split for split in _names.SPLITS if split in files or (split == "val" and self.options.val_share)]

    def fingerprint(self) -> str:
        """Hashes the files, and the options that decide which rows they have."""
        self._refuse_wrong_layout()
        options = {**msgspec.structs.asdict(self.options), "path": None}
        digest = hashlib.sha256(repr(options).encode())
        for split, files in self.layout.files.items():
            for file in files:
                with _readable(file):
                    digest.update(f"\0{split}\0{self._get_name(file)}\0{sftrun.files.file_digest(file)}\0".encode())
        return digest.hexdigest()

    def locate(self, origin: str) -> str:
        return str(self.layout.root / origin)

    def list_files(self, split: str) -> list[tuple[str, Path]]:
        """Returns the files of a split, each with its name in origins; raises UserError if the layout is wrong."""
        self._refuse_wrong_layout()
        files = self.layout.files
        found = files.get(split) or (files["train"] if split == "val" and self.options.val_share else [])
        return [(self._get_name(file), file) for file in found]

    def make_filter(self, split: str) -> _holdout.Choose | None:
        """Returns a function that selects the rows of a split by their content; None if every row is selected."""
        if split == "test" or "val" in self.layout.files or not self.options.val_share:
            return None
        # by content, so that equal rows are in one split and an added row moves hardly any other
        return self._scan or self.holdout.choose(split)

    @functools.cached_property
    def holdout(self) -> _holdout.Holdout:
        """The training rows that are held out as val."""

        def read(see: _holdout.Choose) -> Iterator[object]:
            self._scan = see
            try:
                yield from self.rows("train")
            finally:
                self._scan = None

        return _holdout.find_holdout(self.options.val_share, read)

    @abc.abstractmethod
    def rows(self, split: str) -> Iterator[sftrun.Row | sftrun.BadRow]:
        """Yields the rows of a split, those that `make_filter` selects."""

    def _refuse_wrong_layout(self) -> None:
        wrong = [problem for problem in self.layout.problems if problem.severity == "error"]
        if wrong:
            raise sftrun.UserError(wrong)

    def _get_name(self, file: Path) -> str:
        return file.relative_to(self.layout.root).as_posix()


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise_unreadable(file, error)


def refuse_other_kind(file: Path, stream: io.BufferedReader, is_utf8: bool = True) -> None:
    """Raises UserError if the first bytes of an opened file are plainly of another kind."""
    if other := _start.find_other_kind(stream.peek(_start.LOOK), is_utf8):
        raise make_error(file, None, f"the file {other[0]}", other[1])


def open_bytes(file: Path) -> io.BufferedReader:
    """Opens a file and decompresses it while it is read; raises UserError if it cannot be opened."""
    with _readable(file):
        if file.suffix not in _names.COMPRESSED:
            return io.BufferedReader(file.open("rb", buffering=0), BLOCK)
        import pyarrow as pa

        codec = {".gz": "gzip", ".zst": "zstd"}[file.suffix]
        raw: Any = pa.input_stream(str(file), compression=codec)
        return io.BufferedReader(raw, BLOCK)


def iter_text_lines(file: Path, text: io.TextIOBase) -> Iterator[str]:
    """Yields the lines of a text; raises UserError for one that is longer than LONGEST_ROW."""
    for number in itertools.count(1):
        line = text.readline(LONGEST_ROW)
        if len(line) == LONGEST_ROW and not line.endswith("\n"):
            raise make_error(file, number, TOO_LARGE)
        if not line:
            return
        yield line


def open_text(file: Path, encoding: str, newline: str | None = None) -> io.TextIOWrapper:
    """Opens a file as text, without a byte order mark; `find_flaw` finds bytes that are not in the encoding."""
    encoding = "utf-8-sig" if is_utf8(encoding) else encoding
    return io.TextIOWrapper(open_bytes(file), encoding, errors="surrogateescape", newline=newline)


def is_utf8(encoding: str) -> bool:
    """Returns True for UTF-8 under any of its names."""
    return codecs.lookup(encoding).name == "utf-8"


def find_flaw(text: str, encoding: str) -> str | None:
    """Returns why a text from `open_text` is unusable, or None."""
    if "\0" in text:
        return NUL
    if text.isascii() or not UNDECODED.search(text):
        return None
    return _start.explain_undecoded(text, codecs.lookup(encoding).name)


def check_encoding(encoding: str) -> Iterator[sftrun.Problem]:
    """Yields a problem if Python does not know the encoding, or if it is not one of text."""
    try:
        io.TextIOWrapper(io.BytesIO(), encoding)
    except LookupError:
        yield sftrun.Problem(f"unknown encoding {encoding!r}", hint="write utf-8, utf-16, cp1252, latin-1 or another")


def raise_unreadable(file: Path, error: Exception, line: int | None = None) -> NoReturn:
    """Raises the UserError for a file that cannot be read further; the rows after that place would be lost."""
    reason = getattr(error, "strerror", None) or str(error)
    what = "cannot be read" if line is None else "cannot be read from here on"
    hint = "it is incomplete: copy or download it again" if file.suffix in _names.COMPRESSED else None
    place = sftrun.errors.Place(str(file), line)
    raise sftrun.UserError(sftrun.Problem(f"{what}: {reason}", place, hint=hint)) from error


def make_error(file: Path, line: int | None, message: str, hint: str | None = None) -> sftrun.UserError:
    """Makes the error for a file with an unexpected format."""
    return sftrun.UserError(sftrun.Problem(message, sftrun.errors.Place(str(file), line), hint=hint))
