"""A run directory whose files were cut, edited or removed: each command names the file and the way on."""

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import talk

import sftrun as package
from sftrun.cli.main import run as run_command

pytestmark = pytest.mark.slow
ROWS = [talk(f"Say {number}.", f"It is {number}.") for number in range(24)]
EVERY = ("resume", "run", "eval", "chat", "generate", "verify")
REPORTS = ("resume", "run", "eval", "verify")
READERS = {  # the commands that must not go on, by file
    **dict.fromkeys(("resolved.yaml", "state.json", "lock.json"), EVERY),
    "prepared/proof.json": EVERY,
    **dict.fromkeys((f"prepared/{name}" for name in ("stats.json", "data.json", "train.arrow", "val.arrow")), REPORTS),
    "prepared/prompts-val.jsonl": REPORTS,
    **dict.fromkeys((f"model/{name}" for name in ("model.safetensors", "config.json", "tokenizer.json")), EVERY),
    **dict.fromkeys(("eval/scores.json", "run.log"), ("resume", "run", "verify")),
    "events.jsonl": REPORTS,
    **dict.fromkeys(("recipe.yaml", "report.html", "README.md", "model/README.md"), ("verify",)),
    **dict.fromkeys((f"checkpoints/checkpoint-2/{name}" for name in ("whole.json", "model.safetensors")), ("verify",)),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of every stage, with a checkpoint at its end."""
    folder = tmp_path_factory.mktemp("finished")
    for split, rows in {"train": ROWS, "val": ROWS[:4]}.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {
        "model": {"name": "sftrun/tiny", "max_seq_len": 96},
        "source": {"use": "jsonl", "with": {"path": str(folder)}},
        "tuning": {"mode": "full"},
        "train": {"max_steps": 2, "batch_size": 4, "save_strategy": "steps", "save_steps": 1},
        "evaluators": ["loss"],
    }
    (folder / "recipe.yaml").write_text(json.dumps(keys))
    (folder / "prompts.txt").write_text("Say 1.\n")
    assert run_command([str(folder / "recipe.yaml"), "--out", str(folder / "run")]) == 0
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the folder of the run, for one test."""
    return Path(shutil.copytree(finished, tmp_path / "copy", symlinks=True))


def words(command: str, folder: Path) -> list[object]:
    run = folder / "run"
    if command == "run":
        return [folder / "recipe.yaml", "--resume", "--out", run]
    return [command, run, *([folder / "prompts.txt"] if command == "generate" else [])]


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(data)


def garble(file: Path) -> None:
    file.write_bytes(b"\0" * file.stat().st_size)


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("harm", [cut, flip, garble, empty])
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_one_message_of_each_command_that_reads_it(copy, sftrun, name, harm):
    harm(copy / "run" / name)
    for command in READERS[name]:
        said = sftrun(*words(command, copy))
        assert said.code == 1, (command, said)
        assert said.err.count("error: ") == 1, (command, said.err)
        error = next(line for line in said.err.splitlines() if "error: " in line)
        assert Path(name).name in error, (command, error)
        assert any(way in error for way in ("put it back", "remove ")), (command, error)
        assert "Traceback" not in said.err


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_was_removed_is_named_by_verify(copy, sftrun, name):
    (copy / "run" / name).unlink()
    said = sftrun("verify", copy / "run")
    if Path(name).name == "whole.json":  # a checkpoint whose removal began
        assert said.code == 0
        return
    assert said.code == 1
    assert said.err.count("error: ") == 1
    assert Path(name).name in said.err


def test_an_edited_recipe_of_a_run_is_not_taken(copy, sftrun):
    file = copy / "run/resolved.yaml"
    file.write_text(file.read_text().replace("max_steps: 2", "max_steps: 3"))
    said = sftrun("resume", copy / "run")
    assert said.code == 1
    assert "resolved.yaml is not what the run wrote: it was edited, or is cut off" in said.err
    assert "--set KEY=VALUE" in said.err


def test_a_model_that_was_removed_is_made_again_from_the_checkpoint(copy, sftrun):
    weights = (copy / "run/model/model.safetensors").read_bytes()
    shutil.rmtree(copy / "run/model")
    said = sftrun("chat", copy / "run")
    assert said.code == 1
    assert "model/chat_template.jinja, model/config.json" in said.err
    assert "sftrun resume" in said.err
    said = sftrun("resume", copy / "run")
    assert said.code == 0, said.err
    assert "run/model is missing: the stage train runs again" in said.err
    assert (copy / "run/model/model.safetensors").read_bytes() == weights
    assert sftrun("verify", copy / "run").code == 0


def test_a_checkpoint_that_claims_to_be_the_last_is_not_used(copy, sftrun):
    shutil.rmtree(copy / "run/model")
    shutil.rmtree(copy / "run/checkpoints/checkpoint-2")
    marker = copy / "run/checkpoints/checkpoint-1/whole.json"
    marker.write_text(marker.read_text().replace('"finished": false', '"finished": true'))
    said = sftrun("resume", copy / "run")
    assert said.code == 0, said.err
    assert "checkpoint-1 is not used: whole.json" in said.err


def test_scores_that_were_damaged_are_made_again_by_eval(copy, sftrun):
    before = json.loads((copy / "run/eval/scores.json").read_text())
    cut(copy / "run/eval/scores.json")
    assert sftrun("eval", copy / "run").code == 0
    assert json.loads((copy / "run/eval/scores.json").read_text()) == before


def test_changed_rows_are_seen_when_a_finished_run_is_resumed(finished, copy, sftrun):
    rows, run = finished / "train.jsonl", copy / "run"
    kept = rows.read_text()
    rows.write_text(kept + json.dumps(talk("Say 99.", "It is 99.")) + "\n")
    try:
        again = sftrun(finished / "recipe.yaml", "--resume", "--out", run)
        resumed, verified = sftrun("resume", run), sftrun("verify", run)
    finally:
        rows.write_text(kept)
    assert again.code == 1
    assert "recipe.yaml:" in again.err
    assert "the data have changed since the run prepared them; put them back, or start a new run" in again.err
    assert resumed.code == 0
    assert (
        "the data have changed since the run prepared them; the run goes on with the rows as they were" in resumed.err
    )
    assert verified.code == 0
    assert "note: the data file train.jsonl has changed" in verified.err


def test_verify_says_what_the_model_was_made_of(copy, sftrun):
    said = sftrun("verify", copy / "run", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    made_of = found["made_of"]
    assert found["problems"] == []
    assert [(each["name"], each["rows"]) for each in made_of["data"]] == [
        ("train.jsonl", {"train": 24}),
        ("val.jsonl", {"val": 4}),
    ]
    assert made_of["data"][0]["sha256"] == package.files.file_digest(copy / "train.jsonl")
    assert made_of["data"][0]["size"] == (copy / "train.jsonl").stat().st_size
    assert made_of["base"] == {"name": "sftrun/tiny", "seed": 0, "fingerprint": package.tiny.fingerprint()}
    assert made_of["versions"]["packages"]["torch"]
    lock = json.loads((copy / "run/lock.json").read_text())
    assert lock["made_of"] == made_of
    card = (copy / "run/model/README.md").read_text()
    for text in (made_of["data"][0]["sha256"], made_of["recipe"]["recipe.yaml"], made_of["mask"], "24"):
        assert text in card
    assert str(copy.parent) not in card


def test_a_file_that_no_stage_wrote_is_noted(copy, sftrun):
    (copy / "run/model/model.gguf").write_text("mine")
    said = sftrun("verify", copy / "run")
    assert said.code == 0
    assert "note: model/model.gguf was not written by the run" in said.err


def test_the_base_is_recorded_by_its_content_and_not_by_a_link(copy, sftrun, tmp_path):
    (copy / "chat-latest").symlink_to("run")
    keys = json.loads((copy / "recipe.yaml").read_text())
    del keys["evaluators"]
    keys |= {"model": {"name": "./chat-latest/model", "max_seq_len": 96}, "tuning": {"mode": "lora"}}
    (copy / "next.yaml").write_text(json.dumps(keys))
    weights = copy / "run/model/model.safetensors"
    kept = weights.read_bytes()
    flip(weights)
    said = sftrun(copy / "next.yaml", "--out", tmp_path / "next")
    assert said.code == 1
    assert "model/model.safetensors of the run" in said.err
    weights.write_bytes(kept)
    said = sftrun(copy / "next.yaml", "--resume", "--out", tmp_path / "next")
    assert said.code == 0, said.err
    base = json.loads((tmp_path / "next/lock.json").read_text())["made_of"]["base"]
    assert base["name"] == str(copy / "run/model")
    assert base["files"]["model.safetensors"]["sha256"] == package.files.file_digest(weights)
    assert "latest" not in (tmp_path / "next/resolved.yaml").read_text()
    assert "latest" not in (tmp_path / "next/model/adapter_config.json").read_text()
    template = copy / "run/model/chat_template.jinja"
    template.write_text(template.read_text().replace("user", "User") + "{# #}")
    said = sftrun("chat", tmp_path / "next")
    assert said.code == 1
    assert "the chat template of" in said.err
    assert "note: the file chat_template.jinja of the base model has changed" in sftrun("verify", tmp_path / "next").err
