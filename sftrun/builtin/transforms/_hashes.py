"""Hashes of 64 bits, the same in every process and on every machine."""

import functools
from collections.abc import Sequence
from hashlib import blake2b, sha256
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Hashes = NDArray[np.uint64]

STEP = 0x9E3779B97F4A7C15  # odd, so that no bit of a word is lost as it moves on


def number(text: str) -> int:
    """A hash of a text, from 0 to 2^64 - 1."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def fingerprint(*files: Path) -> str:
    """A hash of what files hold."""
    digest = sha256()
    for file in files:
        with file.open("rb") as opened:
            inner = sha256()
            while block := opened.read(1 << 20):
                inner.update(block)
        digest.update(inner.digest())
    return digest.hexdigest()


_word = functools.lru_cache(1 << 16)(number)


def grams(words: Sequence[str], size: int) -> "Hashes":
    """A hash of every run of `size` words; of all the words, where there are fewer."""
    import numpy as np

    hashes = np.fromiter(map(_word, words), np.uint64, len(words))
    size = min(size, len(words))
    rolled = np.zeros(len(words) - size + 1 if size else 0, np.uint64)
    for start in range(size):
        rolled = rolled * np.uint64(STEP) + hashes[start : start + len(rolled)]
    return rolled
