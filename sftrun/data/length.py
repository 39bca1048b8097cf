"""What becomes of a row that is too long, or in which nothing is trained."""

from collections.abc import Callable
from typing import Any, NamedTuple

from sftrun.data.ledger import Entry
from sftrun.data.tokens import offsets
from sftrun.recipe.model import Recipe


class Kept(NamedTuple):
    """A sample: its ids and trained flags, its first token in the row, its origin and what it counts."""

    ids: Any
    trained: Any
    first: int
    origin: str
    counts: offsets.Counts


class Fit:
    """Fits rows of one split into model.max_seq_len, as data.on_too_long says, and writes down what it does."""

    def __init__(
        self, recipe: Recipe, split: str, add: Callable[[Entry], None], fatal: Callable[[str, str], None]
    ) -> None:
        self.limit = recipe.model.max_seq_len
        self.way = {"drop": self._drop_long, "truncate": self._truncate, "split": self._split, "error": self._refuse}[
            recipe.data.on_too_long
        ]
        self.split = split
        self.add = add
        self.fatal = fatal

    def row(self, origin: str, row: offsets.Tokens) -> list[Kept]:
        """The samples that a row becomes: none, one, or with on_too_long split several."""
        if not row.trained.any():
            self._note(origin, row, "dropped", "nothing trained", "the masker chose no token")
            return []
        return [_kept(origin, row, 0, len(row.ids))] if len(row.ids) <= self.limit else self.way(origin, row)

    def _refuse(self, origin: str, row: offsets.Tokens) -> list[Kept]:
        self.fatal(origin, f"has {len(row.ids)} tokens, more than model.max_seq_len={self.limit}")
        return []

    def _drop_long(self, origin: str, row: offsets.Tokens) -> list[Kept]:
        self._note(origin, row, "dropped", "too long", f"{len(row.ids)} tokens")
        return []

    def _truncate(self, origin: str, row: offsets.Tokens) -> list[Kept]:
        size = len(row.ids)
        if not row.trained[: self.limit].any():
            detail = f"{size} tokens, and the prompt fills {self.limit}"
            self._note(origin, row, "dropped", "nothing trained after truncation", detail)
            return []
        lost = int(row.trained[self.limit :].sum())
        self.add(Entry(self.split, origin, "truncated", "too long", f"{size} tokens", size - self.limit, lost))
        return [_kept(origin, row, 0, self.limit)]

    def _split(self, origin: str, row: offsets.Tokens) -> list[Kept]:
        size, found = len(row.ids), []
        for number, first in enumerate(range(0, size, self.limit), 1):
            last = min(first + self.limit, size)
            if row.trained[first:last].any():
                found.append(_kept(origin if number == 1 else f"{origin} (part {number})", row, first, last))
        lost = size - sum(len(each.ids) for each in found)
        detail = f"{size} tokens in {len(found)} parts" + (f"; {lost} in parts with nothing trained" if lost else "")
        self.add(Entry(self.split, origin, "truncated" if lost else "changed", "split: too long", detail, lost))
        return found

    def _note(self, origin: str, row: offsets.Tokens, action: Any, reason: str, detail: str) -> None:
        self.add(Entry(self.split, origin, action, reason, detail, len(row.ids), int(row.trained.sum())))


def _kept(origin: str, row: offsets.Tokens, first: int, last: int) -> Kept:
    counts = offsets.counted(row, first, last)
    return Kept(row.ids[first:last], row.trained[first:last], first, origin, counts)
