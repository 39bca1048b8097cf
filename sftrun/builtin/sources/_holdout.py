"""Validation rows held out of the training rows by a hash of their content, and enough of them."""

import heapq
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import NamedTuple

import sftrun

FEWEST = 10  # validation rows; the mean loss of fewer rows is mostly chance
PART = 5  # at most one row in so many is held out to reach FEWEST
COUNTED = PART * FEWEST  # different rows that are told apart; from there on, FEWEST rows are few enough
SCALE = 2**64  # number of hashes

Choose = Callable[[bytes], bool]
"""Returns True if a row, given by its content, is in a split."""


class Holdout(NamedTuple):
    """The rows held out: those with a hash below `limit`. `held` and `rows` are None if the share alone decides."""

    limit: int
    held: int | None = None
    rows: int | None = None

    def choose(self, split: str) -> Choose:
        """Returns the function that chooses the rows of train or val."""
        limit = min(self.limit, SCALE - 1).to_bytes(8, "big")
        if split == "val":
            return lambda content: _digest(content) < limit
        return lambda content: _digest(content) >= limit

    def describe(self, share: float) -> str | None:
        """Returns what is held out if that is not the share alone."""
        if self.held is None or self.rows is None or 0 < self.held <= round(share * self.rows):
            return None
        if not self.held:
            return f"no row is held out for validation: there are too few different rows ({self.rows})"
        return (
            f"{self.held} of {self.rows} rows are held out for validation, because the losses of fewer say little "
            f"(val_share={share:g} alone: {share * self.rows:.1f})"
        )


class _EnoughError(Exception):
    """Ends the scan of the rows, as the share alone holds out enough of them."""


class _Scan:
    """Sees the rows of a source, and keeps the lowest hashes, as only these can be held out."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.limit = int(share * SCALE)
        self.rows = 0
        self.above = 0
        self.different: set[int] = set()
        self.lowest: list[int] = []  # a heap of negative hashes, the highest hash first

    def see(self, content: bytes) -> bool:
        """Notes one row, which is in no split meanwhile."""
        self.rows += 1
        number = int.from_bytes(_digest(content), "big")
        self.above += number >= self.limit
        if len(self.different) < COUNTED:
            self.different.add(number)
        if -number not in self.lowest:
            heapq.heappush(self.lowest, -number)
            if len(self.lowest) > FEWEST + 1:
                heapq.heappop(self.lowest)
        if self.above and len(self.lowest) > FEWEST and -self.lowest[0] < self.limit:
            raise _EnoughError
        return False

    def choose(self) -> Holdout:
        """Returns the rows to hold out of all that were seen, which are few, or rarely low enough."""
        lowest = sorted(-number for number in self.lowest)
        most = len(self.different) - 1
        wanted = max(1, min(FEWEST, len(self.different) // PART), min(FEWEST, round(self.share * self.rows)))
        held = max(0, min(wanted, most))
        return Holdout(lowest[held] if held else 0, held, self.rows)


def find_holdout(share: float, read: Callable[[Choose], Iterable[object]]) -> Holdout:
    """Finds the rows to hold out; `read` reads the training rows and gives the content of each to a function.

    Reads until the share alone holds out FEWEST rows; of fewer rows, it reads all.
    """
    scan = _Scan(share)
    try:
        for _ in read(scan.see):
            pass
    except _EnoughError:
        return Holdout(scan.limit)
    return scan.choose()


def check_holdout(holdout: Holdout, share: float) -> Iterable[sftrun.Problem]:
    """Yields a warning if more or less is held out than the share."""
    if about := holdout.describe(share):
        hint = "give the source val rows of your own, or set val_share: 0 to train on all rows"
        yield sftrun.Problem(about, path=("source", "with", "val_share"), hint=hint, severity="warning")


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=8).digest()
