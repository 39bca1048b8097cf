"""Source `json`: one array of objects in a file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import sftrun
from sftrun.builtin.sources import _array, _files, _rows


class JsonOptions(_files.FileOptions):
    """Path of the rows, and the field that holds them."""

    field: Annotated[
        str | None,
        sftrun.Meta(description="Field whose array has the rows, such as data, if a file is an object."),
    ] = None


@sftrun.hookimpl
def register_sources(register: sftrun.Register) -> None:
    register("json", Json, options=JsonOptions)


class Json(_files.FileSource):
    """JSON files that are one array of objects each: a file, several by a pattern, or a folder of splits."""

    suffixes = (".json",)

    def __init__(self, options: JsonOptions) -> None:
        super().__init__(options)
        self.field = options.field

    def rows(self, split: str) -> Iterator[sftrun.Row | sftrun.BadRow]:
        is_chosen = self.make_filter(split)
        for name, file in self.list_files(split):
            for number, element in enumerate(self._read_elements(file), 1):
                if is_chosen is None or is_chosen(element):
                    yield _rows.decode_row(element, f"{name}:{number}")

    def locate(self, origin: str) -> str:
        return _rows.format_row_number(super().locate(origin))

    def _read_elements(self, file: Path) -> Iterator[bytes]:
        with _files.open_bytes(file) as stream:
            array = _array.Array(stream, self.field)
            try:
                _files.refuse_other_kind(file, stream)
                yield from array.iter_elements()
            except _array.BrokenError as error:
                line = array.count_lines() if error.line is None else error.line
                raise _files.make_error(file, line, str(error), error.hint) from None
            except OSError as error:
                _files.raise_unreadable(file, error, array.count_lines())
