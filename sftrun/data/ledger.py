"""The ledger: an entry for every row that was dropped, truncated, filtered, changed or added, with the reason.

Dropped and truncated rows are lost, and `data.max_lost` limits their share. A filtered row is not lost: the
recipe asked a transform to leave it out.
"""

from collections import Counter
from pathlib import Path
from typing import Literal

import msgspec

from sftrun.types import NoteAction

Action = NoteAction | Literal["truncated"]
LOST = ("dropped", "truncated")


class Entry(msgspec.Struct, frozen=True):
    """A ledger entry: a row, what happened to it and why; `tokens` and `trained` count what it lost."""

    split: str
    origin: str
    action: Action
    reason: str
    detail: str = ""
    tokens: int = 0
    trained: int = 0


class Ledger:
    """The ledger file, as JSON lines, with counts by split and reason."""

    def __init__(self, file: Path) -> None:
        self.file = file.open("wb")
        self.counts: dict[str, Counter[str]] = {}
        self.tokens: Counter[str] = Counter()
        self.trained: Counter[str] = Counter()
        self.first: dict[str, Entry] = {}

    def add(self, entry: Entry) -> None:
        """Writes one entry; `reason` groups entries, `detail` describes this row."""
        self.file.write(msgspec.json.encode(entry) + b"\n")
        label = f"{entry.action}: {entry.reason}"
        self.counts.setdefault(entry.split, Counter())[label] += 1
        self.tokens[entry.split] += entry.tokens
        self.trained[entry.split] += entry.trained
        self.first.setdefault(f"{entry.split} {label}", entry)

    def count_lost(self, split: str) -> int:
        """Returns how many rows of a split were dropped or truncated."""
        counts = self.counts.get(split, Counter())
        return sum(number for label, number in counts.items() if label.startswith(LOST))

    def find_first_lost(self, split: str) -> Entry:
        """Returns the first entry of a split that lost something."""
        return next(e for e in self.first.values() if e.split == split and e.action in LOST)

    def close(self) -> None:
        """Closes the file."""
        self.file.close()
