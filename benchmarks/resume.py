"""Kills runs at random moments, resumes them, and compares their weights with those of a run that was never killed.

    python benchmarks/resume.py --kills 20 --mode lora
    python benchmarks/resume.py --kills 20 --mode full --processes 2
    python benchmarks/resume.py --kills 20 --mode unsloth       # where the plugin sftrun-unsloth and unsloth are

A kill is SIGKILL to the command, to its workers, or to all of them at once. A third of the kills come at any moment,
from the start of the command on; a third after a step; and a third wait until a checkpoint is being written, and come
while it is. A run is killed several times (`--chain`), then left to end, and its weights are compared. Prints where
each kill hit and how many runs are identical, and exits with 1 where one is not.
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
SAVE = 0.04  # seconds that a checkpoint of the embedded model takes to write, or less


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


class Attempt:
    """The command, as started once; the same one for the first attempt and for every later one."""

    def __init__(self, file: Path, out: Path, sets: list[str]) -> None:
        words = [word for each in sets for word in ("--set", each)]
        command = [sys.executable, "-m", "sftrun", str(file), "--resume", "--out", str(out), *words]
        self.out, self.before, self.stale = out, len(lines(out)), identity(out / SAVING)
        self.errors = (file.parent / "errors.txt").open("wb")
        self.process = subprocess.Popen(command, stderr=self.errors, cwd=file.parent)

    def events(self) -> list[dict[str, object]]:
        """What this attempt has done so far; a line that the one before left unfinished was cut off."""
        return [json.loads(line) for line in lines(self.out)[self.before :]]

    def steps(self) -> list[int]:
        """The steps that this attempt has made."""
        return [int(str(event["step"])) for event in self.events() if event["event"] == "step"]

    def until(self, reached: Callable[[], bool], pause: float) -> bool:
        """Waits for it; False where the command has ended before."""
        while self.process.poll() is None:
            if reached():
                return True
            time.sleep(pause)
        return False

    def kill(self, victim: str, workers: list[int]) -> None:
        """SIGKILL to the command, to the processes that it has started, or to all."""
        for pid in {"command": [], "workers": workers, "all": workers}[victim]:
            send(pid, signal.SIGKILL)
        if victim != "workers" or not workers:
            send(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.until_gone(workers)

    def until_gone(self, pids: list[int]) -> None:
        """Workers whose command is gone end by themselves; what they leave must not change any more."""
        while any(alive(pid) for pid in pids):
            time.sleep(0.01)


def identity(folder: Path) -> int | None:
    """Which folder it is, among those of its name one after another; None where there is none."""
    try:
        return folder.stat().st_ctime_ns
    except FileNotFoundError:
        return None


def lines(out: Path) -> list[str]:
    """The whole lines of events.jsonl."""
    file = out / "events.jsonl"
    return (file.read_text() if file.is_file() else "").split("\n")[:-1]


def descendants(pid: int) -> Iterator[int]:
    """Processes that a process has started, and theirs."""
    table = subprocess.run(["ps", "-e", "-o", "ppid=,pid="], capture_output=True, text=True, check=True).stdout
    pairs = [[int(word) for word in line.split()] for line in table.splitlines()]
    parents = [pid]
    while parents:
        parents = [child for parent, child in pairs if parent in parents]
        yield from parents


def send(pid: int, number: int) -> None:
    """A signal to a process, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def alive(pid: int) -> bool:
    """Whether a process still runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def killed(attempt: Attempt, way: str, step: int, seconds: float) -> dict[str, object] | None:
    """Kills an attempt in one of the ways, and says where it was hit; None where it had ended before."""
    started, victim = time.monotonic(), random.choice(VICTIMS)
    saving = attempt.out / SAVING
    if way == "any moment":
        moment = random.uniform(0, seconds)
        there = attempt.until(lambda: time.monotonic() - started >= moment, 0.005)
    else:
        there = attempt.until(lambda: max(attempt.steps(), default=0) >= step, 0.005)
    workers = list(descendants(attempt.process.pid))  # before the moment comes: a save is over soon
    if there and way == "in a save":
        there = attempt.until(saving.exists, 0.0005)
        time.sleep(random.uniform(0, SAVE))
    if not there:
        return None
    attempt.kill(victim, workers)
    return {"way": way, "victim": victim, **hit(attempt, saving)}


def hit(attempt: Attempt, saving: Path) -> dict[str, object]:
    """Where an attempt was: its last step, its stage, and how much of a checkpoint it has left unfinished."""
    events, steps = attempt.events(), attempt.steps()
    stages = [str(event["stage"]) for event in events if event["event"] == "stage" and event["status"] == "started"]
    left = identity(saving) not in (None, attempt.stale)  # not what an earlier attempt has left
    files = sum(path.is_file() for path in saving.rglob("*")) if left else None
    return {"stage": stages[-1] if stages else "start", "step": steps[-1] if steps else None, "unfinished": files}


def told(found: dict[str, object]) -> str:
    """A kill in words."""
    where = f"{found['stage']}" + (f", step {found['step']}" if found["step"] else "")
    save = "" if found["unfinished"] is None else f", in a save with {found['unfinished']} files written"
    return f"{found['way']}: {found['victim']} killed in {where}{save}"


def weights(out: Path) -> bytes:
    """All weights of the trained model."""
    return b"".join(file.read_bytes() for file in sorted((out / "model").glob("*.safetensors")))


def chained(
    file: Path, out: Path, sets: list[str], ways: list[str], seconds: float
) -> tuple[list[dict[str, object]], int]:
    """A run that is killed in each of these ways, one after another, and left to end: the kills, and its exit code."""
    kills: list[dict[str, object]] = []
    steps = sorted(random.sample(range(1, TRAIN["max_steps"] - SAVED["save_steps"]), len(ways)))
    for step, way in zip(steps, ways, strict=True):
        attempt = Attempt(file, out, sets)
        found = killed(attempt, way, step, seconds)
        if found is None:
            return kills, attempt.process.wait()
        kills.append(found)
        print(f"  {told(found)}", flush=True)
    return kills, Attempt(file, out, sets).process.wait()


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--chain", type=int, default=5, help="kills of one run before it is left to end")
    parser.add_argument("--mode", choices=MODES, default="full")
    parser.add_argument("--processes", type=int, default=1, help="training processes (launch.processes)")
    parser.add_argument("--set", action="append", default=[], dest="sets", help="KEY=VALUE for the recipe")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SFTRUN_SEED", "0")), help="or SFTRUN_SEED")
    parser.add_argument("--json", type=Path, help="a file for every kill and every comparison")
    asked = parser.parse_args()
    random.seed(asked.seed)
    sets = [*asked.sets, *([f"launch.processes={asked.processes}"] if asked.processes > 1 else [])]
    with tempfile.TemporaryDirectory() as name:
        os.environ["SFTRUN_CACHE"] = f"{name}/cache"
        file, began = recipe(Path(name), asked.mode), time.monotonic()
        if Attempt(file, Path(name) / "whole", sets).process.wait():
            sys.exit(f"the run without kills failed:\n{(file.parent / 'errors.txt').read_text()}")
        wanted, seconds = weights(Path(name) / "whole"), time.monotonic() - began
        print(f"{asked.mode}: the run without kills took {seconds:.0f} s", flush=True)
        runs: list[dict[str, object]] = []
        done = 0
        while done < asked.kills:
            out = Path(name) / f"killed-{len(runs)}"
            ways = [WAYS[number % len(WAYS)] for number in range(done, min(done + asked.chain, asked.kills))]
            kills, code = chained(file, out, sets, ways, seconds)
            done += len(kills) or bool(code)  # a run that fails at once counts too, or this would not end
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
    print(f"repeat these moments with --seed {asked.seed}")
    if asked.json:
        asked.json.write_text(json.dumps({**vars(asked), "json": None, "runs": runs}, indent=1) + "\n")
    sys.exit(identical != len(runs))


if __name__ == "__main__":
    main()
