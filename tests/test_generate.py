"""`sftrun generate` writes answers as they are made, and evaluation reports its progress."""

import json
import signal
import subprocess
import sys

import pytest
from conftest import talk, wait_for

from sftrun.flow import run

ROWS = {"train": [talk("hi", "ho")] * 4, "val": [talk(f"What comes after {number}?", "1") for number in range(5)]}
KEYS = {
    "model": {"name": "sftrun/tiny", "max_seq_len": 128},
    "source": {"use": "jsonl", "with": {"path": "."}},
    "train": {"max_steps": 1, "save_strategy": "no", "eval_strategy": "no"},
    "evaluators": [{"use": "generation", "with": {"metrics": ["exact_match"], "max_new_tokens": 2, "batch_size": 2}}],
}
MANY = 400


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate")
    for split, rows in ROWS.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(json.dumps(KEYS))
    return run(folder / "recipe.yaml", out=folder / "out")


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("".join(f"What comes after {number}?\n" for number in range(MANY)))
    return file


def test_evaluation_reports_each_evaluator_and_the_answers_so_far(trained):
    seen = [event for event in trained.events() if event["event"] in ("evaluating", "answered")]
    named = [(event["which"], event.get("evaluator")) for event in seen if event["event"] == "evaluating"]
    assert named == [("base", None), ("base", "generation"), ("tuned", None), ("tuned", "generation")]
    last = {event["which"]: (event["done"], event["total"]) for event in seen if event["event"] == "answered"}
    assert last == {"base": (5, 5), "tuned": (5, 5)}


def test_ctrl_c_keeps_the_answers_that_are_made_and_says_how_many(trained, prompts, tmp_path, ctrl_c):
    out = tmp_path / "answers.jsonl"
    words = ["generate", trained.path, prompts, "--out", out, "--batch-size", "2", "--max-new-tokens", "200"]
    command = [sys.executable, "-m", "sftrun", *map(str, words)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: out.is_file() and out.read_text())
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert 0 < len(rows) < MANY
    assert said.endswith(f"interrupted; {len(rows)} of {MANY} answers are written: {out}\n")
    assert [row["prompt"] for row in rows] == prompts.read_text().splitlines()[: len(rows)]


def test_the_answers_do_not_replace_the_prompts(trained, prompts, sftrun):
    before = prompts.read_text()
    said = sftrun("generate", trained.path, prompts, "--out", prompts)
    assert said.code == 1
    assert "is the file of prompts, which it would replace; name another file" in said.err
    assert prompts.read_text() == before
