"""Sources `csv` and `tsv`: tables as text, one row a record."""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import sftrun
from sftrun.builtin.sources import _files

LONGEST = 1 << 28  # characters of a field; past it, a quote was never closed
SEPARATOR = "\x1f"
Fields = list[str] | str  # the fields of a record, or the reason why it cannot be read


class CsvOptions(_files.FileOptions):
    """Where the rows are, and how they are written."""

    columns: Annotated[
        Annotated[list[str], sftrun.Meta(min_length=1)] | None,
        sftrun.Meta(description="Names of the columns, for files whose first line is a row; null: it is the header."),
    ] = None
    delimiter: Annotated[
        str, sftrun.Meta(min_length=1, max_length=1, description="The character between two fields.")
    ] = ","
    quoted: Annotated[
        bool,
        sftrun.Meta(description='Whether a field may stand in double quotes, with "" for one of its own.'),
    ] = True
    encoding: Annotated[str, sftrun.Meta(description="Text encoding of the files.")] = "utf-8"


class TsvOptions(CsvOptions):
    """Where the rows are, and how they are written."""

    delimiter: Annotated[
        str, sftrun.Meta(min_length=1, max_length=1, description="The character between two fields.")
    ] = "\t"


@sftrun.hookimpl
def register_sources(register: sftrun.Register) -> None:
    register("csv", Csv, options=CsvOptions)
    register("tsv", tsv, options=TsvOptions)


def tsv(options: TsvOptions) -> "Csv":
    """Tab-separated files: a file, several by a pattern, or a folder of splits; every value is text."""
    return Csv(options, ".tsv")


class Csv:
    """Comma-separated files: a file, several by a pattern, or a folder of splits; every value is text."""

    def __init__(self, options: CsvOptions, suffix: str = ".csv") -> None:
        self.options = options
        self.files = _files.Files(options, suffix)

    def check_recipe(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        yield from _files.unknown_encoding(self.options.encoding)
        if self.options.delimiter in '"\r\n':
            yield sftrun.Problem("a delimiter cannot be a quote or the end of a line")
        if twice := _twice(self.options.columns or []):
            yield sftrun.Problem(f"columns names {twice} twice")

    def check_machine(self, recipe: sftrun.Recipe) -> Iterable[sftrun.Problem]:
        return self.files.ready()

    def splits(self) -> list[str]:
        return self.files.splits()

    def rows(self, split: str) -> Iterator[sftrun.Row | sftrun.BadRow]:
        keep = self.files.keep(split)
        for name, file in self.files.of(split):
            records = self._records(file)
            columns = self.options.columns or _header(file, records)
            for line, fields in records:
                if fields == self.options.columns:
                    raise _files.at(file, line, "this line is the header", "leave the option columns out")
                content = fields if isinstance(fields, str) else SEPARATOR.join(fields)
                if keep is None or keep(content.encode("utf-8", "surrogateescape")):
                    yield _row(columns, fields, f"{name}:{line}")

    def fingerprint(self) -> str:
        o = self.options
        return self.files.fingerprint(o.columns, o.delimiter, o.quoted, o.encoding)

    def locate(self, origin: str) -> str:
        return self.files.locate(origin)

    def _records(self, file: Path) -> Iterator[tuple[int, Fields]]:
        """Each record with the line it begins at."""
        csv.field_size_limit(LONGEST)  # the module keeps one for the whole process
        with _files.opened_text(file, self.options.encoding, newline="") as text:
            reader = csv.reader(
                text,
                delimiter=self.options.delimiter,
                quoting=csv.QUOTE_MINIMAL if self.options.quoted else csv.QUOTE_NONE,
                strict=True,
            )
            while True:
                line = reader.line_num + 1
                try:
                    fields = next(reader, None)
                except csv.Error as error:
                    yield line, _reason(error, file, line, reader.line_num)
                    continue
                except (OSError, UnicodeError) as error:
                    _files.damaged(file, error, reader.line_num + 1)
                if fields is None:
                    return
                if fields:
                    yield line, fields


def _reason(error: csv.Error, file: Path, first: int, last: int) -> str:
    """What is wrong with a record; raises UserError where a quote has swallowed all that follows."""
    if str(error).startswith(("unexpected end of data", "field larger than")):
        hint = "close it, or write it twice where it is part of the text; quoted: false takes quotes as text"
        raise _files.at(file, first, "a quote that is opened here is never closed", hint)
    if str(error) == "line contains NUL":  # Python 3.10
        return _files.NUL
    lines = f" (lines {first} to {last})" if last > first else ""
    return f"not valid CSV{lines}: {error}"


def _header(file: Path, records: Iterator[tuple[int, Fields]]) -> list[str]:
    line, names = next(records, (1, "the file is empty"))
    if isinstance(names, str):
        raise _files.at(file, line, f"there is no header: {names}")
    if twice := _twice(names):
        raise _files.at(file, line, f"the header names {twice} twice", "rename one of the two columns")
    return names


def _twice(names: list[str]) -> str | None:
    return next((repr(name) for name in names if names.count(name) > 1), None)


def _row(columns: list[str], fields: Fields, origin: str) -> sftrun.Row | sftrun.BadRow:
    if isinstance(fields, str):
        return sftrun.BadRow(origin, fields)
    if len(fields) != len(columns):
        return sftrun.BadRow(origin, f"has {len(fields)} fields, but there are {len(columns)} columns")
    flaw = _files.flaw("".join(fields))
    return sftrun.BadRow(origin, flaw) if flaw else sftrun.Row(dict(zip(columns, fields, strict=True)), origin)
