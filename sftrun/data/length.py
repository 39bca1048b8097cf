"""The length policy: drops, truncates, splits or refuses rows that are too long, and drops rows without loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

from sftrun.data.ledger import Entry
from sftrun.data.tokens import offsets
from sftrun.errors import RowError
from sftrun.recipe.model import Recipe

LARGE = 1 << 20  # characters of a row; one below is tokenized as a whole, which takes up to 0.5 kB for each
LARGEST = 1 << 23  # characters of the largest row that is tokenized as a whole
PER_TOKEN = 8  # characters; more than a token has on average in almost all texts
CUT = 64  # tokens; where a text is cut, its last tokens differ from those of the whole text


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
        self.on_too_long = recipe.data.on_too_long
        self.handle_too_long = {
            "drop": self._drop_long,
            "truncate": self._truncate,
            "split": self._split,
            "error": self._report_too_long,
        }[self.on_too_long]
        self.split = split
        self.add = add
        self.fatal = fatal

    def accept_size(self, origin: str, text: str, count: Callable[[str], int]) -> bool:
        """Returns False for a large row whose beginning alone has too many tokens, and notes it.

        `count` counts tokens. Raises RowError for a row that is too large to be tokenized.
        """
        size = len(text)
        if size <= LARGE:
            return True
        largest = max(LARGEST, PER_TOKEN * self.limit)
        if self.on_too_long in ("drop", "error") and self._begins_too_long(text[:largest], count):
            self._report_large(origin, size)
            return False
        if size > largest:
            raise RowError(f"has {size:,} characters, and no row of more than {largest:,} is tokenized; split it")
        return True

    def _begins_too_long(self, text: str, count: Callable[[str], int]) -> bool:
        part = PER_TOKEN * self.limit
        while part < len(text):
            if count(text[:part]) > self.limit + CUT:
                return True
            part *= 4
        return False

    def _report_large(self, origin: str, size: int) -> None:
        found = f"more than {self.limit} tokens in {size:,} characters"
        if self.on_too_long == "error":
            self.fatal(origin, f"has {found}; model.max_seq_len is {self.limit}")
        else:
            self.add(Entry(self.split, origin, "dropped", "too long", found))

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
