"""The length policy: drops, truncates, splits or refuses rows that are too long, and drops rows without loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

from sftrun.data.ledger import Entry
from sftrun.data.tokens import offsets
from sftrun.recipe.model import Recipe


class Piece(NamedTuple):
    """A sample cut from a tokenized row: ids, trained flags, its first token in the row, its origin and counts."""

    ids: Any
    trained: Any
    first: int
    origin: str
    counts: offsets.Counts


class LengthPolicy:
    """The policy `data.on_too_long` for the rows of one split; it writes what it does to the ledger."""

    def __init__(
        self, recipe: Recipe, split: str, add: Callable[[Entry], None], fatal: Callable[[str, str], None]
    ) -> None:
        self.limit = recipe.model.max_seq_len
        self.handle_too_long = {
            "drop": self._drop_long,
            "truncate": self._truncate,
            "split": self._split,
            "error": self._report_too_long,
        }[recipe.data.on_too_long]
        self.split = split
        self.add = add
        self.fatal = fatal

    def apply(self, origin: str, row: offsets.TokenizedText) -> list[Piece]:
        """Returns the samples that a row becomes: none, one, or with `split` several."""
        if not row.trained.any():
            self._note_dropped(origin, row, "nothing trained", "the masker chose no token")
            return []
        return (
            [_make_piece(origin, row, 0, len(row.ids))]
            if len(row.ids) <= self.limit
            else self.handle_too_long(origin, row)
        )

    def _report_too_long(self, origin: str, row: offsets.TokenizedText) -> list[Piece]:
        self.fatal(origin, f"has {len(row.ids)} tokens, more than model.max_seq_len={self.limit}")
        return []

    def _drop_long(self, origin: str, row: offsets.TokenizedText) -> list[Piece]:
        self._note_dropped(origin, row, "too long", f"{len(row.ids)} tokens")
        return []

    def _truncate(self, origin: str, row: offsets.TokenizedText) -> list[Piece]:
        size = len(row.ids)
        if not row.trained[: self.limit].any():
            detail = f"{size} tokens, and the prompt fills {self.limit}"
            self._note_dropped(origin, row, "nothing trained after truncation", detail)
            return []
        lost = int(row.trained[self.limit :].sum())
        self.add(Entry(self.split, origin, "truncated", "too long", f"{size} tokens", size - self.limit, lost))
        return [_make_piece(origin, row, 0, self.limit)]

    def _split(self, origin: str, row: offsets.TokenizedText) -> list[Piece]:
        size, pieces = len(row.ids), []
        for number, first in enumerate(range(0, size, self.limit), 1):
            last = min(first + self.limit, size)
            if row.trained[first:last].any():
                pieces.append(_make_piece(origin if number == 1 else f"{origin} (part {number})", row, first, last))
        lost = size - sum(len(piece.ids) for piece in pieces)
        detail = f"{size} tokens in {len(pieces)} parts" + (f"; {lost} in parts with nothing trained" if lost else "")
        self.add(Entry(self.split, origin, "truncated" if lost else "changed", "split: too long", detail, lost))
        return pieces

    def _note_dropped(self, origin: str, row: offsets.TokenizedText, reason: str, detail: str) -> None:
        self.add(Entry(self.split, origin, "dropped", reason, detail, len(row.ids), int(row.trained.sum())))


def _make_piece(origin: str, row: offsets.TokenizedText, first: int, last: int) -> Piece:
    counts = offsets.count_tokens(row, first, last)
    return Piece(row.ids[first:last], row.trained[first:last], first, origin, counts)
