"""Fixtures for all tests: recipes on the embedded model, and a run that is trained once."""

import importlib.util
import itertools
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from _pytest.mark.expression import Expression

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

TRAIN = {"max_steps": 12, "learning_rate": 5e-3, "batch_size": 8, "logging_steps": 1, "save_strategy": "no"}


def row(number: int) -> dict[str, Any]:
    question = {"role": "user", "content": f"What comes after {number}?"}
    return {"messages": [question, {"role": "assistant", "content": str(number + 1)}]}


DATA = {"train": range(40), "val": range(40, 50), "test": range(50, 60)}


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests that need unsloth or a GPU, if it is missing."""
    absent = importlib.util.find_spec("unsloth") is None
    for item in items:
        if item.get_closest_marker("unsloth") and absent:
            item.add_marker(pytest.mark.skip(reason="unsloth is not installed here"))
        elif item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs a GPU: run `pytest -m gpu` on a machine that has one"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing that a test makes reaches the user's cache, and nothing there reaches a test."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["SFTRUN_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Full tuning of the embedded model on forty questions."""
    folder = tmp_path_factory.mktemp("recipe")
    for split, numbers in DATA.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row(number)) + "\n" for number in numbers))
    keys = {
        "model": {"name": "sftrun/tiny", "max_seq_len": 64},
        "source": {"use": "jsonl", "with": {"path": "."}},
        "tuning": {"mode": "full"},
        "backend": "unsloth",
        "train": TRAIN,
    }
    (folder / "recipe.yaml").write_text(json.dumps(keys))
    return folder / "recipe.yaml"


@pytest.fixture
def problems(recipe: Path) -> Callable[..., list[str]]:
    """A function that returns the problems which `sftrun validate` finds in the recipe with changed settings."""
    import sftrun

    return lambda *settings: [f"{found.severity}: {found.message}" for found in sftrun.validate(recipe, settings)]
