"""Source `parquet`: Parquet files, as in many datasets of the Hub."""

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import sftrun
from sftrun.builtin.sources import _files, _rows

BATCH = 16  # rows in memory at a time: more are hardly faster, and rows may be large


class ParquetOptions(_files.FileOptions):
    """Path of the files, and the columns to read."""

    columns: Annotated[
        Annotated[list[str], sftrun.Meta(min_length=1)] | None,
        sftrun.Meta(description="Columns to read; null for all."),
    ] = None


@sftrun.hookimpl
def register_sources(register: sftrun.Register) -> None:
    register("parquet", Parquet, options=ParquetOptions)


class Parquet(_files.FileSource):
    """Parquet files: a file, several by a pattern, or a folder of splits such as train-00000-of-00002.parquet."""

    suffixes = (".parquet",)

    def __init__(self, options: ParquetOptions) -> None:
        super().__init__(options)
        self.columns = options.columns

    def check_machine(self, recipe: sftrun.Recipe) -> Iterable[sftrun.Problem]:
        yield from sftrun.missing_packages("pyarrow", extra="train", path=("source",), why="the source parquet")
        yield from super().check_machine(recipe)

    def rows(self, split: str) -> Iterator[sftrun.Row]:
        is_chosen = self.make_filter(split)
        for name, file in self.list_files(split):
            for number, data in enumerate(self._read_records(file), 1):
                if is_chosen is None or is_chosen(_rows.encode_content(data)):
                    yield sftrun.Row(data, f"{name}:{number}")

    def locate(self, origin: str) -> str:
        return _rows.format_row_number(super().locate(origin))

    def _read_records(self, file: Path) -> Iterator[dict[str, Any]]:
        import pyarrow as pa
        from pyarrow import parquet

        try:
            with parquet.ParquetFile(str(file), memory_map=True, pre_buffer=False) as table:
                self._check_columns(file, table.schema_arrow.names)
                for batch in table.iter_batches(BATCH, columns=self.columns):
                    yield from batch.to_pylist()
        except (OSError, pa.ArrowException) as error:
            _files.raise_unreadable(file, error)

    def _check_columns(self, file: Path, names: list[str]) -> None:
        for column in self.columns or []:
            if column not in names:
                close = difflib.get_close_matches(column, names, n=1)
                hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(names)}"
                raise _files.make_error(file, None, f"the file has no column {column}", hint)
