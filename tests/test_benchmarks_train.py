"""The benchmarks of training run, in small."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def said(script, *words):
    done = subprocess.run(
        [sys.executable, FOLDER / script, *words], capture_output=True, text=True, check=False, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout[done.stdout.index("{\n") :])


def test_sftrun_is_compared_with_a_bare_loop_and_trl():
    sizes = ["--rows", "4", "--batch", "2", "--hidden", "64", "--layers", "1", "--words", "1024", "--rounds", "1"]
    found = said("train.py", *sizes)
    assert set(found["medians"]) == {"bare", "sftrun", "trl"}
    (first,) = found["rounds"]
    assert first["sftrun"]["trained"] == first["trl"]["trained"] > 0
    assert first["sftrun"]["tokens"] == first["bare"]["tokens"]


def test_the_benchmark_for_a_gpu_runs_in_small(tmp_path):
    file = tmp_path / "all.json"
    found = said("gpu.py", "--small", "--rounds", "1", "--case", "llama-8b-lora", "--out", str(file))
    medians = found["llama-8b-lora"]["medians"]
    assert {"sftrun", "trl", "trl-plain"} <= set(medians)
    assert all(each["tokens_per_s"] > 0 for each in medians.values())
    assert json.loads(file.read_text())["llama-8b-lora"]["rounds"]


def test_what_only_a_gpu_shows_runs_in_small_on_a_cpu(tmp_path):
    env = {**os.environ, "SMALL": "--small", "PYTHON": sys.executable, "SITE": str(tmp_path / "site"), "LIMIT": "500"}
    done = subprocess.run(
        [FOLDER / "on_gpu.sh", tmp_path, "install", "tests", "full"],
        capture_output=True,
        text=True,
        check=False,
        env=env,
    )
    assert done.returncode == 0, done.stdout
    assert [line.split(":")[0] for line in (tmp_path / "stages.txt").read_text().splitlines()] == [
        "install",
        "tests",
        "full",
    ]
    assert json.loads((tmp_path / "gpu.json").read_text())["qwen-0.5b-full"]["sftrun_over"]["trl"] > 0
    assert "skipped" in (tmp_path / "tests.log").read_text()
