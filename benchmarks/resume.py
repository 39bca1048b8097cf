"""Kills runs at random moments, resumes them, and compares their weights with the weights of an undisturbed run.

    python benchmarks/resume.py --kills 20 --mode lora
    python benchmarks/resume.py --kills 20 --mode full --processes 2
    python benchmarks/resume.py --kills 20 --mode unsloth       # with unsloth and the plugin sftrun-unsloth

A kill is SIGKILL to the command, to its workers, or to both. A third of the kills come at any moment after the start of
the command, a third after a step, and a third while a checkpoint is written. A run is killed several times (`--chain`),
then left to end, and its weights are compared. Prints the stage and step of each kill and the number of identical runs;
exits with 1 if any run differs.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

ROWS = [("What comes after {0}?", "{1}"), ("Say {0} twice.", "{0} {0}"), ("Say {0}.", "{0}")]
MODES = {
    "full": {"tuning": {"mode": "full"}},
    "lora": {"tuning": {"mode": "lora", "lora": {"r": 8, "dropout": 0.1}}, "packing": {"strategy": "best-fit"}},
    "qlora": {"tuning": {"mode": "qlora", "lora": {"r": 8, "dropout": 0.1}}, "backend": "bnb"},
    "unsloth": {"tuning": {"mode": "qlora", "lora": {"r": 8, "dropout": 0.1}}, "backend": "unsloth"},
}
TRAIN = {"max_steps": 60, "epochs": 100, "learning_rate": 5e-3, "batch_size": 2, "grad_accum": 2, "logging_steps": 1}
SAVED = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 10}
WAYS = ("in a save", "any moment", "after a step")
SAVING = "checkpoints/.saving"
VICTIMS = ("command", "workers", "all")
SAVE = 0.04  # seconds, at most, to write a checkpoint of the embedded model


def recipe(folder: Path, mode: str) -> Path:
    """Writes a small recipe and its data to a folder."""
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


class Attempt:
    """A started command; the first and every later attempt use the same command."""

    def __init__(self, file: Path, out: Path, sets: list[str]) -> None:
        words = [word for each in sets for word in ("--set", each)]
        command = [sys.executable, "-m", "sftrun", str(file), "--resume", "--out", str(out), *words]
        self.out = out
        self.before = len(lines(out))
        self.stale = identity(out / SAVING)
        self.errors = (file.parent / "errors.txt").open("wb")
        self.process = subprocess.Popen(command, stderr=self.errors, cwd=file.parent)

    def events(self) -> list[dict[str, object]]:
        """Returns the events of this attempt so far; the run has cut off an unfinished line of the previous attempt."""
        return [json.loads(line) for line in lines(self.out)[self.before :]]

    def steps(self) -> list[int]:
        """Returns the steps of this attempt."""
        return [int(str(event["step"])) for event in self.events() if event["event"] == "step"]

    def until(self, reached: Callable[[], bool], pause: float) -> bool:
        """Waits for a condition; returns False if the command ends first."""
        while self.process.poll() is None:
            if reached():
                return True
            time.sleep(pause)
        return False

    def kill(self, victim: str, workers: list[int]) -> None:
        """Sends SIGKILL to the command, to its workers, or to all."""
        for pid in {"command": [], "workers": workers, "all": workers}[victim]:
            send(pid, signal.SIGKILL)
        if victim != "workers" or not workers:
            send(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.until_gone(workers)

    def until_gone(self, pids: list[int]) -> None:
        """Waits until all workers have ended: they must not write any more."""
        while any(alive(pid) for pid in pids):
            time.sleep(0.01)


def identity(folder: Path) -> int | None:
    """Returns a number that differs for each folder created under a name; None if there is no folder."""
    try:
        return folder.stat().st_ctime_ns
    except FileNotFoundError:
        return None


def lines(out: Path) -> list[str]:
    """Returns the complete lines of events.jsonl."""
    file = out / "events.jsonl"
    return (file.read_text() if file.is_file() else "").split("\n")[:-1]


def descendants(pid: int) -> Iterator[int]:
    """Yields the descendants of a process."""
    table = subprocess.run(["ps", "-e", "-o", "ppid=,pid="], capture_output=True, text=True, check=True).stdout
    pairs = [[int(word) for word in line.split()] for line in table.splitlines()]
    parents = [pid]
    while parents:
        parents = [child for parent, child in pairs if parent in parents]
        yield from parents


def send(pid: int, number: int) -> None:
    """Sends a signal to a process, if it still exists."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def alive(pid: int) -> bool:
    """Returns True if a process still runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def kill_in(way: str, attempt: Attempt, step: int, seconds: float) -> dict[str, object] | None:
    """Kills an attempt in one of the ways; returns where it was hit, or None if it had ended before."""
    started = time.monotonic()
    victim = random.choice(VICTIMS)
    saving = attempt.out / SAVING
    if way == "any moment":
        moment = random.uniform(0, seconds)
        running = attempt.until(lambda: time.monotonic() - started >= moment, 0.005)
    else:
        running = attempt.until(lambda: max(attempt.steps(), default=0) >= step, 0.005)
    workers = list(descendants(attempt.process.pid))  # listed early, because a save is short
    if running and way == "in a save":
        running = attempt.until(saving.exists, 0.0005)
        time.sleep(random.uniform(0, SAVE))
    if not running:
        return None
    attempt.kill(victim, workers)
    return {"way": way, "victim": victim, **hit(attempt, saving)}


def hit(attempt: Attempt, saving: Path) -> dict[str, object]:
    """Returns the last step and the stage of an attempt, and the number of files of an unfinished checkpoint."""
    events, steps = attempt.events(), attempt.steps()
    stages = [str(event["stage"]) for event in events if event["event"] == "stage" and event["status"] == "started"]
    left = identity(saving) not in (None, attempt.stale)  # leftovers of earlier attempts do not count
    files = sum(path.is_file() for path in saving.rglob("*")) if left else None
    return {"stage": stages[-1] if stages else "start", "step": steps[-1] if steps else None, "unfinished": files}


def describe(kill: dict[str, object]) -> str:
    """Returns a kill in words."""
    where = f"{kill['stage']}" + (f", step {kill['step']}" if kill["step"] else "")
    save = "" if kill["unfinished"] is None else f", in a save with {kill['unfinished']} files written"
    return f"{kill['way']}: {kill['victim']} killed in {where}{save}"


def weights(out: Path) -> bytes:
    """Returns all weights of the trained model."""
    return b"".join(file.read_bytes() for file in sorted((out / "model").glob("*.safetensors")))


def run_with_kills(
    file: Path, out: Path, sets: list[str], ways: list[str], seconds: float
) -> tuple[list[dict[str, object]], int]:
    """Kills a run in each of these ways, one after another, then lets it end; returns the kills and the exit code."""
    kills: list[dict[str, object]] = []
    steps = sorted(random.sample(range(1, TRAIN["max_steps"] - SAVED["save_steps"]), len(ways)))
    for step, way in zip(steps, ways, strict=True):
        attempt = Attempt(file, out, sets)
        kill = kill_in(way, attempt, step, seconds)
        if kill is None:
            return kills, attempt.process.wait()
        kills.append(kill)
        print(f"  {describe(kill)}", flush=True)
    return kills, Attempt(file, out, sets).process.wait()


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--chain", type=int, default=5, help="kills of one run before it is left to end")
    parser.add_argument("--mode", choices=MODES, default="full")
    parser.add_argument("--processes", type=int, default=1, help="training processes (launch.processes)")
    parser.add_argument("--set", action="append", default=[], dest="sets", help="KEY=VALUE for the recipe")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SFTRUN_SEED", "0")), help="or SFTRUN_SEED")
    parser.add_argument("--json", type=Path, help="a file for every kill and every comparison")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    sets = [*arguments.sets, *([f"launch.processes={arguments.processes}"] if arguments.processes > 1 else [])]
    with tempfile.TemporaryDirectory() as name:
        os.environ["SFTRUN_CACHE"] = f"{name}/cache"
        file, began = recipe(Path(name), arguments.mode), time.monotonic()
        if Attempt(file, Path(name) / "whole", sets).process.wait():
            sys.exit(f"the run without kills failed:\n{(file.parent / 'errors.txt').read_text()}")
        wanted, seconds = weights(Path(name) / "whole"), time.monotonic() - began
        print(f"{arguments.mode}: the run without kills took {seconds:.0f} s", flush=True)
        runs: list[dict[str, object]] = []
        done = 0
        while done < arguments.kills:
            out = Path(name) / f"killed-{len(runs)}"
            ways = [WAYS[number % len(WAYS)] for number in range(done, min(done + arguments.chain, arguments.kills))]
            kills, code = run_with_kills(file, out, sets, ways, seconds)
            done += len(kills) or bool(code)  # a run that fails at once counts too, so that the loop ends
            same = code == 0 and weights(out) == wanted
            runs.append({"kills": kills, "exit": code, "identical": same})
            print(f"run {len(runs)}, killed {len(kills)} times: {'identical' if same else f'DIFFERENT, exit {code}'}")
            if code:
                print((file.parent / "errors.txt").read_text())
    every = [kill for run in runs for kill in run["kills"]]  # type: ignore[attr-defined]
    saves = sum(kill["unfinished"] is not None for kill in every)
    identical = sum(bool(run["identical"]) for run in runs)
    minutes = (time.monotonic() - began) / 60
    print(f"victims: {dict(Counter(kill['victim'] for kill in every))}; {minutes:.1f} minutes")
    print(f"{len(every)} kills, {saves} of them in a save; identical: {identical} of {len(runs)} runs")
    print(f"repeat these moments with --seed {arguments.seed}")
    if arguments.json:
        arguments.json.write_text(json.dumps({**vars(arguments), "json": None, "runs": runs}, indent=1) + "\n")
    sys.exit(identical != len(runs))


if __name__ == "__main__":
    main()
