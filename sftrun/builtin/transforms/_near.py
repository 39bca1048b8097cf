"""Texts that are nearly the same: MinHash finds candidates (Broder, 1997), their Jaccard similarity decides.

The signatures are rensa's; their bands (Leskovec et al., Mining of Massive Datasets, 3.4) are kept on disk.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from sftrun.builtin.transforms._hashes import number

if TYPE_CHECKING:
    import sqlite3

    from sftrun.builtin.transforms._hashes import Hashes

FOUND = 0.99  # chance at least that a pair at the threshold shares a band
CANDIDATES = 64  # those that share most bands; a set made from one template has thousands
SEED = 0


class Like(NamedTuple):
    """An earlier row, and how similar it is."""

    origin: str
    similarity: float


class Near:
    """The rows seen so far, by what they are like."""

    def __init__(self, connection: "sqlite3.Connection", threshold: float, permutations: int) -> None:
        self.connection = connection
        self.threshold = threshold
        self.permutations = permutations
        self.size = band_size(threshold, permutations)
        connection.execute("CREATE TABLE row (id INTEGER PRIMARY KEY, origin TEXT, grams BLOB)")
        connection.execute("CREATE TABLE band (key INTEGER, row INTEGER, PRIMARY KEY (key, row)) WITHOUT ROWID")

    def bands(self, grams: "Hashes") -> list[int]:
        """One number a band of the signature, as SQLite has integers."""
        signature = _signature(grams, self.permutations)
        starts = range(0, self.permutations - self.size + 1, self.size)
        return [number(f"{start} {signature[start : start + self.size]}") - 2**63 for start in starts]

    def find(self, grams: "Hashes", bands: list[int]) -> Like | None:
        """An earlier row that is similar enough."""
        for origin, blob in self._candidates(bands):
            similarity = _jaccard(grams, blob)
            if similarity >= self.threshold:
                return Like(origin, similarity)
        return None

    def _candidates(self, bands: list[int]) -> Iterator[tuple[str, bytes]]:
        marks = ", ".join("?" * len(bands))
        shared = f"SELECT row, count(*) AS n FROM band WHERE key IN ({marks}) GROUP BY row ORDER BY n DESC, row LIMIT ?"
        query = f"SELECT origin, grams FROM ({shared}) AS s JOIN row ON row.id = s.row ORDER BY s.n DESC, s.row"
        yield from self.connection.execute(query, [*bands, CANDIDATES]).fetchall()

    def add(self, origin: str, grams: "Hashes", bands: list[int]) -> None:
        """Remembers a row."""
        added = self.connection.execute("INSERT INTO row (origin, grams) VALUES (?, ?)", (origin, grams.tobytes()))
        pairs = [(key, added.lastrowid) for key in set(bands)]
        self.connection.executemany("INSERT INTO band VALUES (?, ?)", pairs)


def band_size(threshold: float, permutations: int) -> int:
    """Numbers in a band: as many as still find nearly all pairs at the threshold, so that few others are looked at."""

    def finds(size: int) -> bool:
        return 1 - (1 - threshold**size) ** (permutations // size) >= FOUND

    return max((size for size in range(1, permutations + 1) if finds(size)), default=1)


def _signature(grams: "Hashes", permutations: int) -> list[int]:
    from rensa import RMinHash

    matrix = RMinHash.digest_matrix_from_flat_token_hashes(grams, [0, len(grams)], permutations, SEED)
    signature: list[int] = matrix.to_rows()[0]
    return signature


def _jaccard(grams: "Hashes", blob: bytes) -> float:
    import numpy as np

    other = np.frombuffer(blob, np.uint64)
    shared = len(np.intersect1d(grams, other, assume_unique=True))
    return shared / (len(grams) + len(other) - shared)
