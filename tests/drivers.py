"""A GPU driver's program that is none: it prints what nvidia-smi prints, and counts how often it was asked."""

import itertools
import os
from pathlib import Path

H100 = ("NVIDIA H100", "81559", "81000")
L4 = ("NVIDIA L4", "23034", "20000")
UUIDS = ("GPU-8a1f", "GPU-8b2e", "GPU-93c0", "GPU-97d4")
NUMBERS = itertools.count()


def install(tmp_path, monkeypatch, *gpus):
    """Installs the program; returns a file with one line for each time that it was called."""
    # one folder each: a process asks a program once
    program = tmp_path / f"driver-{next(NUMBERS)}" / "nvidia-smi"
    program.parent.mkdir(parents=True)
    rows = (f"{number}, {UUIDS[number]}, {', '.join(gpu)}" for number, gpu in enumerate(gpus))
    lines = "".join(f"{row}\\n" for row in rows)
    calls = program.with_name("calls")
    calls.touch()
    program.write_text(f"#!/bin/sh\necho \"$@\" >> '{calls}'\nprintf '{lines}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return calls


def count_calls(calls: Path) -> int:
    """Returns how often the program was called."""
    return len(calls.read_text().splitlines())
