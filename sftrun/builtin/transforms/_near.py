"""Near duplicates: MinHash finds candidates (Broder, 1997), and their Jaccard similarity decides.

rensa computes the signatures; their bands (Leskovec et al., Mining of Massive Datasets, 3.4) are stored on disk.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from sftrun.builtin.transforms._hashes import hash_text

if TYPE_CHECKING:
    import sqlite3

    from sftrun.builtin.transforms._hashes import Hashes

RECALL = 0.99  # probability that a pair at the threshold shares a band
CANDIDATES = 64  # rows compared, by number of shared bands; rows made from one template share bands with thousands
SEED = 0


class Match(NamedTuple):
    """An earlier row, and its similarity."""

    origin: str
    similarity: float


class NearDuplicates:
    """The rows seen so far, searchable by similarity."""

    def __init__(self, connection: "sqlite3.Connection", threshold: float, permutations: int) -> None:
        self.connection = connection
        self.threshold = threshold
        self.permutations = permutations
        self.size = choose_band_size(threshold, permutations)
        connection.execute("CREATE TABLE row (id INTEGER PRIMARY KEY, origin TEXT, grams BLOB)")
        connection.execute("CREATE TABLE band (key INTEGER, row INTEGER, PRIMARY KEY (key, row)) WITHOUT ROWID")

    def make_bands(self, ngrams: "Hashes") -> list[int]:
        """Returns one number for each band of the signature, as a signed integer of SQLite."""
        signature = _make_signature(ngrams, self.permutations)
        starts = range(0, self.permutations - self.size + 1, self.size)
        return [hash_text(f"{start} {signature[start : start + self.size]}") - 2**63 for start in starts]

    def find(self, ngrams: "Hashes", bands: list[int]) -> Match | None:
        """Finds an earlier row that is similar enough."""
        for origin, blob in self._find_candidates(bands):
            similarity = _measure_similarity(ngrams, blob)
            if similarity >= self.threshold:
                return Match(origin, similarity)
        return None

    def _find_candidates(self, bands: list[int]) -> Iterator[tuple[str, bytes]]:
        marks = ", ".join("?" * len(bands))
        shared = f"SELECT row, count(*) AS n FROM band WHERE key IN ({marks}) GROUP BY row ORDER BY n DESC, row LIMIT ?"
        query = f"SELECT origin, grams FROM ({shared}) AS s JOIN row ON row.id = s.row ORDER BY s.n DESC, s.row"
        yield from self.connection.execute(query, [*bands, CANDIDATES]).fetchall()

    def add(self, origin: str, ngrams: "Hashes", bands: list[int]) -> None:
        """Adds a row."""
        added = self.connection.execute("INSERT INTO row (origin, grams) VALUES (?, ?)", (origin, ngrams.tobytes()))
        pairs = [(key, added.lastrowid) for key in set(bands)]
        self.connection.executemany("INSERT INTO band VALUES (?, ?)", pairs)


def choose_band_size(threshold: float, permutations: int) -> int:
    """Chooses the largest band that still finds nearly all pairs at the threshold, so that few others are compared."""

    def finds(size: int) -> bool:
        return 1 - (1 - threshold**size) ** (permutations // size) >= RECALL

    return max((size for size in range(1, permutations + 1) if finds(size)), default=1)


def _make_signature(ngrams: "Hashes", permutations: int) -> list[int]:
    from rensa import RMinHash

    matrix = RMinHash.digest_matrix_from_flat_token_hashes(ngrams, [0, len(ngrams)], permutations, SEED)
    signature: list[int] = matrix.to_rows()[0]
    return signature


def _measure_similarity(ngrams: "Hashes", blob: bytes) -> float:
    import numpy as np

    other = np.frombuffer(blob, np.uint64)
    shared = len(np.intersect1d(ngrams, other, assume_unique=True))
    return shared / (len(ngrams) + len(other) - shared)
