"""Kills runs at random moments, resumes them, and compares their weights with those of a run that was never killed.

    python benchmarks/resume.py --kills 20 --mode lora

A kill is SIGKILL to the worker and to the command, at a time drawn between the first step and the last; every third
one waits for a checkpoint that is being written. Each killed run is resumed until it ends. Prints `identical: 20 of
20`, and exits with 1 where one is not.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROWS = [("What comes after {0}?", "{1}"), ("Say {0} twice.", "{0} {0}"), ("Say {0}.", "{0}")]
MODES = {
    "full": {"tuning": {"mode": "full"}},
    "lora": {"tuning": {"mode": "lora", "lora": {"r": 8, "dropout": 0.1}}, "packing": {"strategy": "best-fit"}},
    "qlora": {"tuning": {"mode": "qlora", "lora": {"r": 8, "dropout": 0.1}}, "backend": "bnb"},
}
TRAIN = {"max_steps": 60, "epochs": 100, "learning_rate": 5e-3, "batch_size": 2, "grad_accum": 2, "logging_steps": 1}
SAVED = {"save_strategy": "steps", "save_steps": 7, "eval_strategy": "steps", "eval_steps": 10}


def recipe(folder: Path, mode: str) -> Path:
    """A small recipe with data, in a folder."""
    for split, numbers in (("train", range(120)), ("val", range(120, 150))):
        rows = [[text.format(number, number + 1) for text in ROWS[number % 3]] for number in numbers]
        lines = [json.dumps({"user": user, "assistant": assistant}) for user, assistant in rows]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    keys = {
        "model": {"name": "sftrun/tiny", "max_seq_len": 128},
        "source": {"use": "jsonl", "with": {"path": "."}},
        "train": {**TRAIN, **SAVED},
        **MODES[mode],
    }
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(keys))
    return file


def start(file: Path, out: Path) -> "subprocess.Popen[bytes]":
    """The command, of the first attempt and of every later one."""
    words = [sys.executable, "-m", "sftrun", str(file), "--resume", "--out", str(out)]
    return subprocess.Popen(words, stderr=subprocess.DEVNULL, cwd=file.parent)


def kill_at(process: "subprocess.Popen[bytes]", out: Path, step: int, saving: bool) -> None:
    """Kills the command and its worker once a step is reached, or, after it, while a checkpoint is written."""
    while process.poll() is None and last_step(out) < step:
        time.sleep(0.005)
    while saving and process.poll() is None and not (out / "checkpoints/.saving").exists():
        time.sleep(0.0005)
    time.sleep(random.random() * 0.05)
    for pid in [*children(process.pid), process.pid]:
        if process.poll() is None:
            os.kill(pid, signal.SIGKILL)
    process.wait()


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(each) for each in found.stdout.split()]


def last_step(out: Path) -> int:
    """The last step that is in the events."""
    file = out / "events.jsonl"
    *lines, _ = (file.read_text() if file.is_file() else "").split("\n")
    events = [json.loads(line) for line in lines]
    return max((event["step"] for event in events if event["event"] == "step"), default=0)


def weights(out: Path) -> bytes:
    """All weights of the trained model."""
    return b"".join(file.read_bytes() for file in sorted((out / "model").glob("*.safetensors")))


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--mode", choices=MODES, default="full")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    random.seed(asked.seed)
    with tempfile.TemporaryDirectory() as name:
        os.environ["SFTRUN_CACHE"] = f"{name}/cache"
        file, whole = recipe(Path(name), asked.mode), Path(name) / "whole"
        assert start(file, whole).wait() == 0, "the run without kills failed"
        wanted, same = weights(whole), 0
        for number in range(asked.kills):
            out, step = Path(name) / f"killed-{number}", random.randrange(1, TRAIN["max_steps"])
            kill_at(start(file, out), out, step, saving=number % 3 == 0)
            code = start(file, out).wait()
            equal = code == 0 and weights(out) == wanted
            same += equal
            print(
                f"kill {number + 1} after step {step}: {'identical' if equal else f'DIFFERENT, exit {code}'}",
                flush=True,
            )
    print(f"identical: {same} of {asked.kills}")
    sys.exit(same != asked.kills)


if __name__ == "__main__":
    main()
