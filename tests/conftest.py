"""Fixtures and helpers for all tests: recipes in a temporary folder, a temporary cache, the command line in-process."""

import itertools
import json
import os
import random
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from _pytest.mark.expression import Expression

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # pytest forks workers of its own
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, each with its own workers


def pytest_configure(config: pytest.Config) -> None:
    """Hides GPUs from the tests and their worker processes, unless every selected test is marked `gpu`."""
    if not (config.option.markexpr and selects_only_gpu_tests(config.option.markexpr)):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def selects_only_gpu_tests(markers: str) -> bool:
    """Returns True if an expression for `pytest -m` matches no test without the marker `gpu`."""
    try:
        expression = Expression.compile(markers)
    except Exception:  # pytest itself reports a malformed expression
        return False
    others = sorted(set(re.findall(r"[^\s()=,]+", markers)) - {"and", "or", "not", "gpu"})
    subsets = itertools.chain.from_iterable(itertools.combinations(others, count) for count in range(len(others) + 1))
    return not any(expression.evaluate(lambda name, /, subset=subset, **_: name in subset) for subset in subsets)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips tests marked `gpu` if no GPU is visible."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a GPU: run `pytest -m gpu` on a machine that has one")


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing that a test makes reaches the user's cache, and nothing there reaches a test."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["SFTRUN_CACHE"] = str(folder)
    return folder


@pytest.fixture
def seed() -> int:
    """Returns a random seed and prints it, as pytest shows what a failed test printed; SFTRUN_SEED repeats a seed."""
    chosen = int(os.environ.get("SFTRUN_SEED") or random.SystemRandom().randrange(2**32))
    print(f"repeat this test with SFTRUN_SEED={chosen}")
    return chosen


@pytest.fixture
def port() -> Iterator[int]:
    """Yields a port that only a server which binds this number can take.

    The socket stays bound but never listens. With SO_REUSEADDR another process may listen on the same number, and the
    kernel gives the number to nobody who asks for any free port.
    """
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("", 0))
        yield reserved.getsockname()[1]


@pytest.fixture
def sftrun(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Runs a command line and returns its exit code and what it printed."""
    from sftrun.cli.main import run

    def call(*words: object) -> Said:
        capsys.readouterr()
        code = run([str(word) for word in words])
        return Said(code, *capsys.readouterr())

    return call


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a recipe on the embedded model, with `rows` as its data and any keys replaced."""

    def recipe(rows: list[Any] | dict[str, list[Any]], **keys: Any) -> Path:
        splits = rows if isinstance(rows, dict) else {"train": rows}
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        for split, items in splits.items():
            lines = [item if isinstance(item, str) else json.dumps(item) for item in items]
            (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
        source = {"use": "jsonl", "with": {"path": "data", **keys.pop("source_options", {"val_share": 0})}}
        model = {"name": "sftrun/tiny", "max_seq_len": 256, **keys.pop("model", {})}
        file = tmp_path / "recipe.yaml"
        # JSON is YAML
        file.write_text(json.dumps({"model": model, "source": source, **keys}, indent=1), "utf-8")
        return file

    return recipe


def wait_for(condition: Callable[[], Any], pause: float = 0.01) -> Any:
    """Returns the first true value of `condition`; the time limit of the test ends the wait."""
    while not (value := condition()):
        time.sleep(pause)
    return value


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Child processes heed SIGINT, which a shell that runs the tests in the background tells them to ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def talk(*turns: str, system: str | None = None) -> dict[str, Any]:
    """A row of turns that alternate between user and assistant."""
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": ("user", "assistant")[index % 2], "content": turn} for index, turn in enumerate(turns)]
    return {"messages": messages}
