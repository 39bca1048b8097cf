"""Start-up: process times of `sftrun --help` and `sftrun validate recipes`, next to a bare Python.

    python benchmarks/startup.py [ROUNDS]

Prints medians in seconds, and heavy modules that were imported by mistake.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SFTRUN = Path(sys.executable).with_name("sftrun")
HEAVY = ("torch", "transformers", "datasets", "numpy")
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "sftrun --help": [str(SFTRUN), "--help"],
    "sftrun validate recipes": [str(SFTRUN), "validate", "recipes"],
}


def seconds(command: list[str]) -> float:
    """Returns the wall time of one process."""
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    return time.perf_counter() - started


def heavy_imports(words: list[str]) -> list[str]:
    """Returns the heavy modules that a command line imports."""
    code = f"import sys; from sftrun.cli.main import run; run({words}); print([m for m in {HEAVY} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return list(result.stdout.strip().splitlines()[-1:])


def main() -> None:
    """Runs the commands in turn, round by round."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    took: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, command in COMMANDS.items():
            took[name].append(seconds(command))
    for name, values in took.items():
        print(f"{name:26} median {statistics.median(values):.3f}  min {min(values):.3f}  of {rounds}")
    print("heavy modules imported:", *heavy_imports(["--help"]), *heavy_imports(["validate", "recipes"]))


if __name__ == "__main__":
    main()
