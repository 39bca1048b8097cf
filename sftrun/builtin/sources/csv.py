"""Sources `csv` and `tsv`: tables as text, one row a record."""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import sftrun
from sftrun.builtin.sources import _files

SEPARATOR = "\x1f"
EXCEL = re.compile(r"sep=(.?)")  # first line of a table that Excel reads
DELIMITERS = re.compile(r"(?<=\w)[;,\t|](?=\w)")  # between two names of columns
Fields = list[str] | str  # the fields of a record, or the reason why it is unreadable


class CsvOptions(_files.FileOptions):
    """Path of the tables, and their format."""

    columns: Annotated[
        Annotated[list[str], sftrun.Meta(min_length=1)] | None,
        sftrun.Meta(description="Names of the columns, for files without a header; null: the first line has them."),
    ] = None
    delimiter: Annotated[
        str, sftrun.Meta(min_length=1, max_length=1, description="The character between two fields.")
    ] = ","
    quoted: Annotated[
        bool,
        sftrun.Meta(description='True: a field may be in double quotes, with "" for a quote inside it.'),
    ] = True
    encoding: Annotated[str, sftrun.Meta(description="Text encoding of the files.")] = "utf-8"


class TsvOptions(CsvOptions):
    """Path of the tables, and their format."""

    delimiter: Annotated[
        str, sftrun.Meta(min_length=1, max_length=1, description="The character between two fields.")
    ] = "\t"


@sftrun.hookimpl
def register_sources(register: sftrun.Register) -> None:
    register("csv", Csv, options=CsvOptions)
    register("tsv", Tsv, options=TsvOptions)


class Csv(_files.FileSource):
    """Comma-separated files: a file, several by a pattern, or a folder of splits; every value is text."""

    suffixes = (".csv",)
    options: CsvOptions

    def check_recipe(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        yield from _files.check_encoding(self.options.encoding)
        if self.options.delimiter in '"\r\n':
            yield sftrun.Problem("the delimiter must not be a quote or a line end")
        if repeated := _find_repeated(self.options.columns or []):
            yield sftrun.Problem(f"columns names {repeated} twice")

    def rows(self, split: str) -> Iterator[sftrun.Row | sftrun.BadRow]:
        is_chosen = self.make_filter(split)
        for name, file in self.list_files(split):
            records = self._read_records(file)
            columns = self.options.columns or _read_header(file, records, self.options.delimiter)
            for line, fields in records:
                if fields == self.options.columns:
                    raise _files.make_error(file, line, "this line is the header", "remove the option columns")
                content = fields if isinstance(fields, str) else SEPARATOR.join(fields)
                if is_chosen is None or is_chosen(content.encode("utf-8", "surrogateescape")):
                    yield _make_row(columns, fields, f"{name}:{line}", self.options.encoding)

    def _read_records(self, file: Path) -> Iterator[tuple[int, Fields]]:
        """Yields each record with the line at which it begins."""
        csv.field_size_limit(_files.LONGEST_ROW)  # a setting of the whole process
        with _files.open_text(file, self.options.encoding, newline="") as text:
            reader = csv.reader(
                _files.iter_text_lines(file, text),
                delimiter=self.options.delimiter,
                quoting=csv.QUOTE_MINIMAL if self.options.quoted else csv.QUOTE_NONE,
                strict=True,
            )
            self._refuse_other_kind(file, text)
            while True:
                line = reader.line_num + 1
                try:
                    fields = next(reader, None)
                except csv.Error as error:
                    yield line, _explain_error(error, file, line, reader.line_num)
                    continue
                except (OSError, UnicodeError) as error:
                    _files.raise_unreadable(file, error, reader.line_num + 1)
                if fields is None:
                    return
                if fields:
                    yield line, fields

    def _refuse_other_kind(self, file: Path, text: io.TextIOWrapper) -> None:
        stream = text.buffer
        assert isinstance(stream, io.BufferedReader)
        try:
            _files.refuse_other_kind(file, stream, _files.is_utf8(self.options.encoding))
        except OSError as error:
            _files.raise_unreadable(file, error, 1)


class Tsv(Csv):
    """Tab-separated files: a file, several by a pattern, or a folder of splits; every value is text."""

    suffixes = (".tsv",)


def _explain_error(error: csv.Error, file: Path, first: int, last: int) -> str:
    """Returns why a record is unreadable; raises UserError if an unclosed quote hides all further records."""
    if str(error).startswith(("unexpected end of data", "field larger than")):
        hint = "close it, or double it if it is part of the text; quoted: false reads quotes as text"
        raise _files.make_error(file, first, "the quote opened here is never closed", hint)
    if str(error) == "line contains NUL":  # Python 3.10
        return _files.NUL
    lines = f" (lines {first} to {last})" if last > first else ""
    return f"not valid CSV{lines}: {error}"


def _read_header(file: Path, records: Iterator[tuple[int, Fields]], delimiter: str) -> list[str]:
    line, names = next(records, (1, "the file is empty"))
    if isinstance(names, str):
        raise _files.make_error(file, line, f"the header is missing: {names}")
    if found := EXCEL.fullmatch(delimiter.join(names)):
        raise _files.make_error(
            file, line, f"this line is for Excel: {found[0]}", f"remove it{_set_delimiter(found[1])}"
        )
    if len(names) == 1 and (other := DELIMITERS.search(names[0])):
        message = f"the header is one column, {names[0]!r}"
        raise _files.make_error(file, line, message, f"if these are several{_set_delimiter(other[0])}")
    if twice := _find_repeated(names):
        raise _files.make_error(file, line, f"the header names {twice} twice", "rename one of the two columns")
    return names


def _set_delimiter(delimiter: str) -> str:
    return f", set delimiter: {json.dumps(delimiter)}"


def _find_repeated(names: list[str]) -> str | None:
    return next((repr(name) for name in names if names.count(name) > 1), None)


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _make_row(columns: list[str], fields: Fields, origin: str, encoding: str) -> sftrun.Row | sftrun.BadRow:
    if isinstance(fields, str):
        return sftrun.BadRow(origin, fields)
    if len(fields) != len(columns):
        return sftrun.BadRow(
            origin, f"has {_count(len(fields), 'field')}, but the table has {_count(len(columns), 'column')}"
        )
    flaw = _files.find_flaw("".join(fields), encoding)
    return sftrun.BadRow(origin, flaw) if flaw else sftrun.Row(dict(zip(columns, fields, strict=True)), origin)
