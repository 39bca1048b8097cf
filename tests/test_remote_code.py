"""Code and pickles that come with a model: nothing of them runs, unless the recipe says so."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import talk

from sftrun import flow, tiny
from sftrun.recipe.validate import validate

ROWS = [talk(f"What comes after {number}?", str(number + 1)) for number in range(8)]
TRAIN = {"max_steps": 1, "save_strategy": "no", "eval_strategy": "no", "warmup": 0}
CODE = """import os, pathlib
from transformers import Qwen3Config, Qwen3ForCausalLM
pathlib.Path(os.environ["MARKER"]).write_text("the code ran")
class OwnConfig(Qwen3Config):
    model_type = "own"
class OwnModel(Qwen3ForCausalLM):
    config_class = OwnConfig
"""
CLASSES = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """A file that the code of the model writes, and a folder for what transformers copies of it."""
    monkeypatch.setenv("MARKER", str(tmp_path / "marker"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "marker"


@pytest.fixture
def model(tmp_path, marker):
    """A model folder with code of its own."""
    folder = tmp_path / "own"
    folder.mkdir()
    tiny.save(folder, 0)
    add_code(folder)
    return folder


def add_code(folder: Path, **classes: str) -> None:
    (folder / "own.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "architectures": ["OwnModel"], "auto_map": {**CLASSES, **classes}}
    (folder / "config.json").write_text(json.dumps(config))


def test_code_of_a_model_does_not_run_and_the_error_says_how_to_allow_it(sftrun, write, model, marker):
    file = write(ROWS, model={"name": str(model)}, train=TRAIN, tuning={"mode": "full"})
    said = sftrun(file)
    assert said.code == 1
    assert "comes with Python code of its own, which sftrun does not run" in said.err
    assert "model.trust_remote_code: true" in said.err
    assert "Traceback" not in said.err
    assert not marker.exists()


@pytest.mark.parametrize("command", ["plan", "rehearse"])
def test_neither_a_plan_nor_a_rehearsal_runs_it(sftrun, write, model, marker, command):
    said = sftrun(command, write(ROWS, model={"name": str(model)}, train=TRAIN))
    assert said.code == 1
    assert "comes with Python code of its own" in said.err
    assert not marker.exists()


def test_a_chat_neither_asks_nor_runs_code_that_came_into_the_folder_later(write, tmp_path, marker):
    run = flow.prepare(write(ROWS, tuning={"mode": "full"}), out=tmp_path / "run")
    run.model.mkdir()
    tiny.save(run.model, 0)
    add_code(run.model)
    words = [sys.executable, "-m", "sftrun", "chat", str(run.path)]
    said = subprocess.run(words, input="yes\ny\n" * 20, env=os.environ, capture_output=True, text=True, check=False)
    assert said.returncode == 1
    assert "comes with Python code of its own" in said.stderr
    assert "[y/N]" not in said.stdout + said.stderr
    assert not marker.exists()


def test_trusted_code_runs_and_the_lock_and_the_card_say_so(write, tmp_path, model, marker):
    trusted = {"name": str(model), "trust_remote_code": True}
    run = flow.run(write(ROWS, model=trusted, train=TRAIN, tuning={"mode": "full"}), out=tmp_path / "run")
    assert marker.exists()
    pinned = run.read_json("lock.json")["model"]
    assert pinned["trust_remote_code"] is True
    assert list(pinned["code"]) == ["own.py"]
    assert "runs Python code of its own" in (run.path / "README.md").read_text()


def test_trusted_code_of_another_repository_is_refused(sftrun, write, model, marker):
    add_code(model, AutoModelForCausalLM="someone/else--own.OwnModel")
    trusted = {"name": str(model), "trust_remote_code": True}
    said = sftrun(write(ROWS, model=trusted, train=TRAIN, tuning={"mode": "full"}))
    assert said.code == 1
    assert "takes code from another repository: someone/else--own.OwnModel" in said.err
    assert not marker.exists()


@pytest.mark.parametrize(("revision", "errors"), [(None, 1), ("main", 1), ("a" * 40, 0)])
def test_code_of_the_hub_needs_a_commit(write, revision, errors):
    found = validate(write(ROWS, model={"name": "me/model", "revision": revision, "trust_remote_code": True}))
    assert [problem.path for problem in found] == [("model", "trust_remote_code")] * errors


def test_a_revision_of_a_folder_is_said_to_have_no_effect(write):
    (problem,) = validate(write(ROWS, model={"revision": "main"}))
    assert (problem.severity, problem.path) == ("warning", ("model", "revision"))


@pytest.mark.parametrize("command", [[], ["prepare"], ["rehearse"]])
def test_pickled_weights_are_refused_in_one_message(sftrun, write, tmp_path, command):
    import torch

    folder = tmp_path / "pickled"
    folder.mkdir()
    tiny.save(folder, 0)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    said = sftrun(*command, write(ROWS, model={"name": str(folder)}, train=TRAIN))
    assert said.code == 1
    assert "are pickled (pytorch_model.bin), and loading them could run any code in them" in said.err
    assert ".safetensors" in said.err
    assert said.err.count("error:") == 1


def test_native_code_of_the_hub_is_loaded_only_by_name(write):
    """A real kernel needs a GPU and a network; here the package that loads it is missing, or never asked."""
    import transformers

    from sftrun import UserError
    from sftrun.recipe.validate import load
    from sftrun.training.model import switches

    assert os.environ["USE_HUB_KERNELS"] == "NO"
    sizes = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = transformers.AutoModelForCausalLM.from_config(transformers.Qwen3Config(**sizes, intermediate_size=64))
    file, named = write(ROWS), ["train.attention=hub", f"train.attention_revision={'c' * 40}"]
    assert switches.apply_switches(model, load(file), print)["attention"] == "sdpa"
    with pytest.raises(UserError, match="hub is not available"):
        switches.check_switches(load(file, named))
    with pytest.raises(UserError, match=r"hub is not available for this model.*kernels"):
        switches.apply_switches(model, load(file, named), print)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"attention": "hub"}, "needs its full commit"),
        ({"attention": "hub", "attention_revision": "main"}, "needs its full commit"),
        ({"attention_revision": "a" * 40}, "has no effect without train.attention hub"),
    ],
)
def test_a_kernel_of_the_hub_needs_a_commit(write, keys, said):
    (problem,) = validate(write(ROWS, train=keys))
    assert said in problem.message
    assert problem.path == ("train", "attention_revision")


def test_only_two_modules_load_with_transformers():
    """`pretrained` says of every model whether its code may run; a call elsewhere could forget it."""
    root = Path(__file__).parents[1] / "sftrun"
    calls = re.compile(r"Auto\w+\.from_(pretrained|config)\(|kind\.from_pretrained\(")
    hint = "save one with AutoTokenizer.from_pretrained("  # text of messages
    found = {
        str(file.relative_to(root))
        for file in root.rglob("*.py")
        for line in file.read_text("utf-8").splitlines()
        if calls.search(line) and hint not in line and 'f"AutoModel' not in line
    }
    assert found == {"training/pretrained.py", "tools/shrink.py"}
