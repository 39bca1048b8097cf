"""The pieces of `sftrun.training`, as the backend of docs/plugins.md puts them together."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import talk

from sftrun.kinds import Loading, Training
from sftrun.types import Decoding

TEXT = (Path(__file__).parent.parent / "docs" / "plugins.md").read_text("utf-8")
ROWS = [talk(f"What comes after {number}?", str(number + 1) * (1 + number % 7)) for number in range(40)]
TRAIN = {"batch_size": 4, "grad_accum": 2, "learning_rate": 5e-3, "logging_steps": 1}
SAVED = {"save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps", "eval_steps": 6}


class Killed(BaseException):
    """What ends an attempt; on the disk it leaves what a kill leaves between two writes."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The backend, imported from the text."""
    folder = tmp_path_factory.mktemp("plain")
    (code,) = re.findall(r"^```python\n# sftrun_plain_work\.py\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    (folder / "sftrun_plain_work.py").write_text(code, "utf-8")
    sys.path.insert(0, str(folder))
    try:
        import sftrun_plain_work
    finally:
        sys.path.remove(str(folder))
    return sftrun_plain_work.Plain()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    for split, rows in (("train", ROWS[:30]), ("val", ROWS[30:])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {
        "model": {"name": "sftrun/tiny", "max_seq_len": 96},
        "source": {"use": "jsonl", "with": {"path": "."}},
        "tuning": {"mode": "full"},
        "train": TRAIN | SAVED,
    }
    (folder / "recipe.yaml").write_text(json.dumps(keys))
    return folder


def prepared(folder, name):
    from sftrun.flow import prepare

    return prepare(folder / "recipe.yaml", (), folder / name)


def recipe(run):
    return run.recipe()


def attempt(plain, run, last=None):
    """Trains to the end, or until a step is reported."""

    def emit(event):
        run.event(event)
        if last is not None and event["event"] == "step" and event["step"] == last:
            raise Killed

    try:
        plain.train(Training(recipe=recipe(run), run=run, emit=emit))
    except Killed:
        return False
    return True


# not on the older set: the loss of its trl needs Triton, which torch has not where it is built for CPUs alone
def test_a_backend_of_a_page_goes_on_to_the_same_weights_and_says_what_it_has_learnt(plain, folder):
    whole, stopped = prepared(folder, "whole"), prepared(folder, "stopped")
    assert attempt(plain, whole)
    assert not attempt(plain, stopped, 6)
    assert not attempt(plain, stopped, 9)
    assert attempt(plain, stopped)
    weights = [(run.model / "model.safetensors").read_bytes() for run in (whole, stopped)]
    assert weights[0] == weights[1]
    assert [event["step"] for event in stopped.events() if event["event"] == "resumed"] == [4, 8]
    base, tuned = (
        plain.load(Loading(recipe=recipe(whole), run=whole, which=which)).losses("val") for which in ("base", "tuned")
    )
    assert tuned.tokens == base.tokens
    assert tuned.loss < base.loss


@pytest.mark.older
def test_its_model_answers_without_the_end_of_turn(plain, folder):
    run = prepared(folder, "answers")
    model = plain.load(Loading(recipe=recipe(run), run=run, which="base"))
    answers = model.generate([[1, 2, 3], [4]], Decoding(max_new_tokens=5, batch_size=2))
    assert model.generate([[1, 2, 3], [4]], Decoding(max_new_tokens=5, batch_size=1)) == answers
    assert all(len(answer) <= 5 and not set(answer) & set(model.stop) for answer in answers)


@pytest.mark.older
def test_limits_are_seen_without_torch():
    code = "import sys, sftrun.training.limits; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.older
def test_nothing_in_it_imports_trl():
    """So a library that patches trl can be imported first, or its trainer be none of trl's."""
    folder = Path(__file__).parent.parent / "sftrun" / "training"
    on_trl = ("sft_trainer", "train")  # the backends hf and bnb are made of these
    names = [path.stem for path in sorted(folder.glob("[a-z]*.py")) if path.stem not in on_trl]
    modules = ", ".join(f"sftrun.training.{name}" for name in names)
    code = f"import sys, {modules}; print('trl' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
