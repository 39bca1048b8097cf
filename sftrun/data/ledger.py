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

    def add(self, entry: Entry) -> None:
        """Writes one entry; `reason` groups entries, `detail` describes this row."""
        self.file.write(msgspec.json.encode(entry) + b"\n")
        label = f"{entry.action}: {entry.reason}"
        self.counts.setdefault(entry.split, Counter())[label] += 1
        self.tokens[entry.split] += entry.tokens
        self.trained[entry.split] += entry.trained

    def close(self) -> None:
        """Closes the file."""
        self.file.close()


def find_first_lost(file: Path, split: str) -> Entry:
    """Returns the first entry of a split in a ledger file that lost something."""
    decoder = msgspec.json.Decoder(Entry)
    with file.open("rb") as lines:
        return next(entry for entry in map(decoder.decode, lines) if entry.split == split and entry.action in LOST)
