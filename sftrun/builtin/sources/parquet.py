"""Source `parquet`: Parquet files, such as those of the Hub's datasets."""

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import sftrun
from sftrun.builtin.sources import _files, _rows

BATCH = 1000  # rows in memory at a time


class ParquetOptions(_files.FileOptions):
    """Where the rows are, and which of their columns are read."""

    columns: Annotated[
        Annotated[list[str], sftrun.Meta(min_length=1)] | None,
        sftrun.Meta(description="Columns that are read; null for all."),
    ] = None


@sftrun.hookimpl
def register_sources(register: sftrun.Register) -> None:
    register("parquet", Parquet, options=ParquetOptions)


class Parquet:
    """Parquet files: a file, several by a pattern, or a folder of splits such as train-00000-of-00002.parquet."""

    def __init__(self, options: ParquetOptions) -> None:
        self.columns = options.columns
        self.files = _files.Files(options, ".parquet")

    def check_machine(self, recipe: sftrun.Recipe) -> Iterable[sftrun.Problem]:
        yield from sftrun.missing_packages("pyarrow", extra="train", path=("source",), why="the source parquet")
        yield from self.files.ready()

    def splits(self) -> list[str]:
        return self.files.splits()

    def rows(self, split: str) -> Iterator[sftrun.Row]:
        keep = self.files.keep(split)
        for name, file in self.files.of(split):
            for number, data in enumerate(self._records(file), 1):
                if keep is None or keep(_rows.content(data)):
                    yield sftrun.Row(data, f"{name}:{number}")

    def fingerprint(self) -> str:
        return self.files.fingerprint(self.columns)

    def locate(self, origin: str) -> str:
        return _rows.by_number(self.files.locate(origin))

    def _records(self, file: Path) -> Iterator[dict[str, Any]]:
        import pyarrow as pa
        from pyarrow import parquet

        try:
            with parquet.ParquetFile(str(file), memory_map=True, pre_buffer=False) as table:
                self._check_columns(file, table.schema_arrow.names)
                for batch in table.iter_batches(BATCH, columns=self.columns):
                    yield from batch.to_pylist()
        except (OSError, pa.ArrowException) as error:
            _files.damaged(file, error)

    def _check_columns(self, file: Path, names: list[str]) -> None:
        for column in self.columns or []:
            if column not in names:
                close = difflib.get_close_matches(column, names, n=1)
                hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(names)}"
                raise _files.at(file, None, f"there is no column {column}", hint)
