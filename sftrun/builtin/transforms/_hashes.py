"""Hashes that are equal in every process and on every machine; a text has one of 64 bits."""

import functools
from collections.abc import Sequence
from hashlib import blake2b, sha256
from pathlib import Path
from typing import TYPE_CHECKING

import sftrun

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Hashes = NDArray[np.uint64]

STEP = 0x9E3779B97F4A7C15  # multiplier of the rolling hash; odd, so that no bit of a word is lost


def hash_text(text: str) -> int:
    """Hashes a text to a number from 0 to 2^64 - 1."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def hash_files(*files: Path) -> str:
    """Hashes the contents of files."""
    return sha256("".join(map(sftrun.files.file_digest, files)).encode()).hexdigest()


_hash_word = functools.lru_cache(1 << 16)(hash_text)


def hash_ngrams(words: Sequence[str], size: int) -> "Hashes":
    """Hashes every run of `size` words, or all of them if there are fewer."""
    import numpy as np

    hashes = np.fromiter(map(_hash_word, words), np.uint64, len(words))
    size = min(size, len(words))
    rolled = np.zeros(len(words) - size + 1 if size else 0, np.uint64)
    for start in range(size):
        rolled = rolled * np.uint64(STEP) + hashes[start : start + len(rolled)]
    return rolled
