"""sftrun from Python: every function takes a recipe file or a Recipe that was built there."""

import json

import pytest

import sftrun
from sftrun.recipe.model import ModelOptions, TrainOptions, TuningOptions
from sftrun.types import Decoding

ROWS = [{"user": f"What is {number}?", "assistant": f"It is {number}."} for number in range(12)]


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    return sftrun.Recipe(
        model=ModelOptions(name="sftrun/tiny", max_seq_len=64),
        source=sftrun.Use(use="jsonl", with_={"path": "rows.jsonl", "val_share": 0.3}),
        masker="last-reply",  # a bare name will do
        tuning=TuningOptions(mode="full"),
        train=TrainOptions(max_steps=2, logging_steps=1, batch_size=2),
        trackers=[],
    )


def test_a_recipe_built_in_python_runs_and_its_run_answers(recipe, tmp_path):
    events = []
    run = sftrun.run(recipe, ["train.max_steps=1"], out=tmp_path / "run", watch=events.append)
    assert run.recipe().train.max_steps == 1
    assert run.recipe().masker.use == "last-reply"
    assert [event.loss > 0 for event in events if isinstance(event, sftrun.events.Step)] == [True]
    assert sftrun.load(run.path / "recipe.yaml").train == recipe.train  # as given, without the override
    (answer,) = sftrun.generate(run.path, [[{"role": "user", "content": "What is 3?"}]], Decoding(max_new_tokens=4))
    assert isinstance(answer, str)
    assert sftrun.resume(run.path).path == run.path


def test_what_is_wrong_with_it_has_a_place(recipe):
    import msgspec

    wrong = msgspec.structs.replace(recipe, masker=sftrun.Use(use="asistant"))
    (problem,) = sftrun.validate(wrong)
    assert problem.message == "unknown masker 'asistant'"
    assert str(problem.where).startswith("<recipe>:")
    assert problem.where.text.strip() == "use: asistant"
    with pytest.raises(sftrun.UserError, match="unknown masker 'asistant'; did you mean 'assistant'"):
        sftrun.run(wrong)


@pytest.mark.slow
def test_it_is_inspected_prepared_and_planned_as_a_file_is(recipe, tmp_path):
    first = next(iter(sftrun.inspect(recipe)))
    number = first.conversation.messages[0]["content"].removeprefix("What is ").removesuffix("?")
    assert [text for text, trained in first.pieces if trained] == [f"It is {number}.<|im_end|>"]
    run = sftrun.prepare(recipe, out=tmp_path / "prepared")
    assert (run.prepared / "train.arrow").is_file()
    found = sftrun.plan(recipe)
    assert found["verdict"].startswith("fits")
    assert found["data"]["rows"] == json.loads((run.prepared / "stats.json").read_text())["train"]["rows"]


@pytest.mark.slow
def test_it_is_rehearsed(recipe):
    rehearsal = sftrun.rehearse(recipe, rows=8)
    assert any(line.startswith("train: 4 steps") for line in rehearsal.exercised)


def test_a_path_may_be_a_text(recipe, tmp_path):
    sftrun.prepare(recipe, out=str(tmp_path / "run"))
    assert sftrun.load(str(tmp_path / "run" / "recipe.yaml")).train.max_steps == 2
