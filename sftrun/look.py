"""What a recipe trains on, row by row, without running it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sftrun.errors import UserError
from sftrun.flow import DATA_LINE, explained, ready
from sftrun.recipe.validate import read
from sftrun.registry import current

if TYPE_CHECKING:
    from sftrun.data.pipeline import Item


def inspect(
    path: str | Path, overrides: Sequence[str] = (), split: str = "train", origin: str = ""
) -> "Iterator[Item]":
    """The samples of a split, or the one that came from `origin`; raises UserError at the end for bad rows."""
    loaded = read(path, overrides)
    with explained(loaded.document):
        ready(loaded.recipe, DATA_LINE)
        from sftrun.data.pipeline import Line

        line = Line(loaded.recipe, current())
        if split not in line.source.splits():
            raise UserError(f"the data has no split {split}; it has {', '.join(line.source.splits())}")
        found = False
        for item in line.samples(split):
            if not origin or item.sample.origin == origin:
                found = True
                yield item
        if line.problems:
            raise UserError(line.problems)
        if origin and not found:
            raise UserError(f"no row of {split} that is trained on comes from {origin}")
