"""What tests share: recipes in a folder of their own, a cache of their own, and the command line in-process."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # pytest forks workers of its own
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, each with workers of its own


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


def talk(*turns: str, system: str | None = None) -> dict[str, Any]:
    """A row of turns that alternate between user and assistant."""
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": ("user", "assistant")[index % 2], "content": turn} for index, turn in enumerate(turns)]
    return {"messages": messages}
