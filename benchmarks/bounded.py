"""Preparation of a growing number of rows: memory and rate.

    python benchmarks/bounded.py [ROWS …] [--short] [--rounds N]

Rows are the rows of the preparation benchmark, repeated, with a number in each; with --short, generated sums of one
line. Each size is prepared in its own process. `anonymous` is its largest anonymous memory (MB), sampled every 20 ms;
`rows_per_s` is the rate of the whole stage. Prints JSON.
"""

import argparse
import gzip
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def rows(count: int, short: bool) -> Iterator[bytes]:
    """Yields `count` different rows."""
    if short:
        for number in range(count):
            a, b = number % 997, number // 997
            messages = [("user", f"What is {a} + {b}?"), ("assistant", f"It is {a + b}.")]
            yield json.dumps({"messages": [{"role": role, "content": text} for role, text in messages]}).encode()
        return
    with gzip.open(DATA / "chat52k.jsonl.gz", "rb") as lines:
        known = [json.loads(line) for line in lines]
    for number, row in zip(range(count), itertools.cycle(known), strict=False):
        first, *rest = row["messages"]
        numbered = {**first, "content": f"{number}. {first['content']}"}
        yield json.dumps({"messages": [numbered, *rest]}).encode()


def anonymous() -> float:
    """Returns the anonymous resident memory of this process, in MB."""
    return int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0]) / 1024


def prepare(folder: Path) -> dict[str, float]:
    """Prepares the rows of a folder, and watches the memory."""
    from sftrun.flow import prepare

    most, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            most[0] = max(most[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started, spent = time.perf_counter(), sum(os.times()[:2])
    stats = prepare(folder / "recipe.yaml", (), folder / "run").read_json("prepared/stats.json")["train"]
    wall, cpu = time.perf_counter() - started, sum(os.times()[:2]) - spent
    done.set()
    watcher.join()
    count = stats["rows"]
    return {
        "rows": count,
        "anonymous": round(most[0], 1),
        "rows_per_s": round(count / wall),
        "cpu_us": cpu / count * 1e6,
    }


def measure(count: int, short: bool) -> dict[str, float]:
    """Measures one size in its own process."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = folder / "model"
        shutil.copytree(DATA / "tokenizer-qwen", model)
        with (folder / "train.jsonl").open("wb") as out:
            out.writelines(line + b"\n" for line in rows(count, short))
        recipe = {
            "model": {"name": str(model), "chat_template": "chatml", "max_seq_len": 2048},
            "source": {"use": "jsonl", "with": {"path": str(folder / "train.jsonl"), "val_share": 0}},
            "packing": {"strategy": "best-fit"},
        }
        (folder / "recipe.yaml").write_text(json.dumps(recipe))
        environment = {**os.environ, "SFTRUN_CACHE": str(folder / "cache"), "TOKENIZERS_PARALLELISM": "true"}
        command = [sys.executable, __file__, "--one", scratch]
        result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return dict(json.loads(result.stdout.splitlines()[-1]))


def main() -> None:
    """Measures every size, in rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int, nargs="*", default=[52_002, 416_016])
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(prepare(args.one)))
        return
    for _ in range(args.rounds):
        for count in args.rows:
            print(json.dumps(measure(count, args.short)), flush=True)


if __name__ == "__main__":
    main()
