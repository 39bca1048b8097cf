"""The ledger: an entry for every row that was dropped, truncated, filtered, changed or added, with the reason.

Dropped and truncated rows are lost, and `data.max_lost` limits their share. A filtered row is not lost: the
recipe asked a transform to leave it out.
"""

from collections import Counter
from collections.abc import Mapping
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


class Counts:
    """Counts of entries by split and reason, with the first entry of each."""

    def __init__(self) -> None:
        self.reasons: dict[str, Counter[str]] = {}
        self.tokens: Counter[str] = Counter()
        self.trained: Counter[str] = Counter()
        self.first: dict[tuple[str, str], Entry] = {}

    def add(self, entry: Entry) -> None:
        """Counts one entry."""
        label = f"{entry.action}: {entry.reason}"
        self.reasons.setdefault(entry.split, Counter())[label] += 1
        self.tokens[entry.split] += entry.tokens
        self.trained[entry.split] += entry.trained
        self.first.setdefault((entry.split, label), entry)

    def list_lost(self, split: str) -> dict[str, int]:
        """Returns how many rows of a split were dropped or truncated, by reason, the most frequent first."""
        counts = self.reasons.get(split, Counter()).most_common()
        return {label: number for label, number in counts if label.startswith(LOST)}

    def list_left_out(self, split: str) -> dict[str, int]:
        """Returns how many rows of a split were lost or filtered, by reason."""
        return {**self.list_lost(split), **select_filtered(self.list_others(split))}

    def list_others(self, split: str) -> dict[str, int]:
        """Returns how many rows of a split were filtered, changed or added, by reason."""
        counts = self.reasons.get(split, Counter())
        return {label: number for label, number in counts.items() if not label.startswith(LOST)}

    def find_first_lost(self, split: str) -> Entry:
        """Returns the first entry of a split for the most frequent loss."""
        return self.first[split, next(iter(self.list_lost(split)))]


class Ledger:
    """The ledger file, as JSON lines, with counts of its entries."""

    def __init__(self, file: Path) -> None:
        self.file = file.open("wb")
        self.counts = Counts()

    def add(self, entry: Entry) -> None:
        """Writes one entry; `reason` groups entries, `detail` describes this row."""
        self.file.write(msgspec.json.encode(entry) + b"\n")
        self.counts.add(entry)

    def close(self) -> None:
        """Closes the file."""
        self.file.close()


def select_filtered(reasons: Mapping[str, int]) -> dict[str, int]:
    """Returns the counts of the rows that transforms left out on purpose."""
    return {label: number for label, number in reasons.items() if label.startswith("filtered")}


def describe_reasons(reasons: Mapping[str, int]) -> str:
    """Returns counts by reason as text: `5 dropped: empty answer, 1 truncated: too long`."""
    return ", ".join(f"{number:,} {label}" for label, number in reasons.items())
