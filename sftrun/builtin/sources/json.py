"""Source `json`: one array of objects in a file."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import sftrun
from sftrun.builtin.sources import _array, _files, _rows


class JsonOptions(_files.FileOptions):
    """Where the rows are."""

    field: Annotated[
        str | None,
        sftrun.Meta(description="Where a file holds one object: the field whose array has the rows, such as data."),
    ] = None


@sftrun.hookimpl
def register_sources(register: sftrun.Register) -> None:
    register("json", Json, options=JsonOptions)


class Json:
    """JSON files that are one array of objects each: a file, several by a pattern, or a folder of splits."""

    def __init__(self, options: JsonOptions) -> None:
        self.field = options.field
        self.files = _files.Files(options, ".json")

    def check_machine(self, recipe: sftrun.Recipe) -> Iterable[sftrun.Problem]:
        return self.files.ready()

    def splits(self) -> list[str]:
        return self.files.splits()

    def rows(self, split: str) -> Iterator[sftrun.Row | sftrun.BadRow]:
        keep = self.files.keep(split)
        for name, file in self.files.of(split):
            for number, element in enumerate(self._elements(file), 1):
                if keep is None or keep(element):
                    yield _rows.decoded(element, f"{name}:{number}")

    def fingerprint(self) -> str:
        return self.files.fingerprint(self.field)

    def locate(self, origin: str) -> str:
        return _rows.by_number(self.files.locate(origin))

    def _elements(self, file: Path) -> Iterator[bytes]:
        with _files.opened(file) as stream:
            array = _array.Array(stream, self.field)
            try:
                yield from array.elements()
            except _array.BrokenError as error:
                hint = "a file with one object a line is read by the source jsonl; rows within an object need field"
                raise _files.at(file, array.line(), f"not valid JSON: {error}", hint) from None
            except OSError as error:
                _files.damaged(file, error, array.line())
