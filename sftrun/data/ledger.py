"""The ledger: every row that was dropped, truncated, filtered, changed or added to, with its origin and the reason.

Dropped and truncated rows are lost, and `data.max_lost` limits their share; a filtered row is one that a
transform was asked to leave out.
"""

from collections import Counter
from pathlib import Path
from typing import Literal

import msgspec

from sftrun.types import NoteAction

Action = NoteAction | Literal["truncated"]
LOST = ("dropped", "truncated")


class Entry(msgspec.Struct, frozen=True):
    """One row, what happened to it and why; `tokens` and `trained` are what it lost."""

    split: str
    origin: str
    action: Action
    reason: str
    detail: str = ""
    tokens: int = 0
    trained: int = 0


class Ledger:
    """Collects entries and writes them as JSON lines."""

    def __init__(self, file: Path) -> None:
        self.file = file.open("wb")
        self.counts: dict[str, Counter[str]] = {}
        self.tokens: Counter[str] = Counter()
        self.trained: Counter[str] = Counter()
        self.first: dict[str, Entry] = {}

    def add(self, entry: Entry) -> None:
        """Writes one entry; `reason` groups entries, `detail` says what is particular to this row."""
        self.file.write(msgspec.json.encode(entry) + b"\n")
        label = f"{entry.action}: {entry.reason}"
        self.counts.setdefault(entry.split, Counter())[label] += 1
        self.tokens[entry.split] += entry.tokens
        self.trained[entry.split] += entry.trained
        self.first.setdefault(f"{entry.split} {label}", entry)

    def lost(self, split: str) -> int:
        """Rows of a split that were dropped or truncated."""
        counts = self.counts.get(split, Counter())
        return sum(number for label, number in counts.items() if label.startswith(LOST))

    def first_lost(self, split: str) -> Entry:
        """The first entry of a split that lost something."""
        return next(e for e in self.first.values() if e.split == split and e.action in LOST)

    def close(self) -> None:
        self.file.close()
