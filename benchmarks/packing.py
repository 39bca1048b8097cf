"""Packing: samples a second, packs and fill, compared with trl and with best-fit decreasing sample by sample.

    python benchmarks/packing.py [--lengths FILE.npy] [--samples N] [--capacity TOKENS] [--rounds N]

Lengths are drawn from a log-normal distribution (mean 94 tokens, like short chats) unless a file is given. trl packs a
`datasets.Dataset` with the same lengths: in its default batches of 1,000, and the whole set at once. trl also moves the
tokens, while sftrun returns their order. Prints one JSON object.
"""

import argparse
import json
import statistics
import time
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import numpy as np

from sftrun.data.pack import best_fit

ONE_BY_ONE = 50_000  # samples for the slow ways


def draw_lengths(samples: int) -> Any:
    """Returns lengths of short chats."""
    lengths = np.random.default_rng(0).lognormal(4.3, 0.68, samples)
    return np.clip(lengths, 16, 2048).astype(np.int32)


def ours(lengths: Any, capacity: int) -> int:
    """Packs with sftrun; returns the number of packs."""
    return len(best_fit(lengths, capacity))


def one_by_one(lengths: Any, capacity: int) -> int:
    """Packs with best-fit decreasing over a sorted list of free spaces; returns the number of packs."""
    spaces: list[int] = []
    count = 0
    for length in sorted(lengths.tolist(), reverse=True):
        at = bisect_left(spaces, length)
        count += at == len(spaces)
        space = spaces.pop(at) if at < len(spaces) else capacity
        if space > length:
            spaces.insert(bisect_left(spaces, space - length), space - length)
    return count


def trl(lengths: Any, capacity: int, at_once: bool) -> Callable[[], int]:
    """Returns a function that packs rows of these lengths with trl."""
    import datasets
    import pyarrow as pa
    from trl.data_utils import pack_dataset

    datasets.disable_progress_bars()
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)
    ids = pa.ListArray.from_arrays(pa.array(starts), pa.array(np.zeros(starts[-1], np.int32)))
    rows = datasets.Dataset(pa.table({"input_ids": ids}))
    how = {"load_from_cache_file": False, "keep_in_memory": True, "batch_size": None if at_once else 1000}
    return lambda: len(pack_dataset(rows, capacity, "bfd", how))


def measure(work: Callable[[], int], lengths: Any, capacity: int, rounds: int) -> dict[str, Any]:
    """Returns median rate, packs and fill."""
    took = []
    for _ in range(rounds):
        started = time.perf_counter()
        packs = work()
        took.append(time.perf_counter() - started)
    rate = len(lengths) / statistics.median(took)
    fill = round(int(lengths.sum()) / (packs * capacity), 5)
    return {"samples": len(lengths), "samples_per_s": round(rate), "packs": packs, "fill": fill}


def main() -> None:
    """Measures each way and prints the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lengths")
    parser.add_argument("--samples", type=int, default=5_000_000)
    parser.add_argument("--capacity", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    lengths = np.load(arguments.lengths) if arguments.lengths else draw_lengths(arguments.samples)
    few, capacity, rounds = lengths[:ONE_BY_ONE], arguments.capacity, arguments.rounds
    ours(few, capacity)  # imports
    result = {
        "sftrun": measure(lambda: ours(lengths, capacity), lengths, capacity, rounds),
        "sftrun, fewer": measure(lambda: ours(few, capacity), few, capacity, rounds),
        "one by one": measure(lambda: one_by_one(few, capacity), few, capacity, rounds),
        "trl bfd": measure(trl(few, capacity, False), few, capacity, rounds),
        "trl bfd, whole set": measure(trl(few, capacity, True), few, capacity, rounds),
    }
    print(json.dumps({"capacity": capacity, **result}, indent=2))


if __name__ == "__main__":
    main()
