"""`sftrun rehearse`: runs every stage of a recipe in small, and lists the stages."""

import json
import shutil

import pytest
from conftest import talk

from sftrun import tiny

ROWS = [talk(f"What comes after {number}?", str(number + 1)) for number in range(40)]
DATA = {"train": ROWS[:30], "val": ROWS[30:36], "test": ROWS[36:]}
EVALUATORS = ["loss", {"use": "generation", "with": {"max_new_tokens": 4}}]


@pytest.fixture
def model(tmp_path):
    """A model folder without weights, whose architecture is far too large for a rehearsal."""
    path = tmp_path / "model"
    path.mkdir()
    for name in tiny.TOKENIZER_FILES:
        shutil.copyfile(tiny.folder() / name, path / name)
    sizes = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "vocab_size": 768}
    config = {"model_type": "llama", "num_attention_heads": 64, "num_key_value_heads": 8, "eos_token_id": 2, **sizes}
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.slow
def test_every_stage_of_a_70b_recipe_is_run_in_small(write, sftrun, model, tmp_path):
    file = write(
        DATA,
        model={"name": str(model)},
        tuning={"mode": "lora"},
        packing={"strategy": "best-fit"},
        evaluators=EVALUATORS,
        exporters=["merged"],
    )
    said = sftrun("rehearse", file, "--rows", 12, "--out", tmp_path / "small", "--json")
    assert said.code == 0, said.err
    done = json.loads(said.out)
    stages = [line.split(":")[0] for line in done["exercised"]]
    assert stages == [
        *("rows", "prepare", "pack", "train", "validate", "save", "resume", "evaluate", "export", "report")
    ]
    assert done["exercised"][0] == "rows: the first ones of the source jsonl (12 of train, 6 of val, 4 of test)"
    assert any("tiny random model" in line for line in done["left_out"])
    small = json.loads((tmp_path / "small" / "run" / "export" / "merged" / "config.json").read_text())
    assert (small["num_hidden_layers"], small["num_attention_heads"], small["num_key_value_heads"]) == (2, 4, 2)
    assert small["vocab_size"] == 768


def test_missing_parts_of_a_recipe_are_listed(write, sftrun, tmp_path, cache):
    train = {"save_strategy": "no", "eval_strategy": "no", "batch_size": "auto", "effective_batch_size": 8}
    said = sftrun("rehearse", write({"train": ROWS}, tuning={"mode": "full"}, train=train))
    assert said.code == 0, said.err
    _, _, left_out = said.err.partition("not exercised:")
    assert "checkpoints, and resuming: the recipe saves none" in left_out
    assert "the choice of train.batch_size: sftrun plan shows it" in left_out
    assert "evaluators: the recipe names none" in left_out
    assert "random" not in left_out  # the embedded model is used as it is
    assert not list(cache.glob(".rehearsal-*"))


@pytest.mark.slow
def test_a_rehearsal_has_no_warnings_about_its_small_size_and_says_where_it_stops(write, sftrun):
    train = {"save_strategy": "epoch", "eval_strategy": "epoch", "early_stopping": {"patience": 3}}
    data = {**DATA, "val": DATA["val"] * 2}
    said = sftrun("rehearse", write(data, tuning={"mode": "lora"}, train=train), "--rows", 12)
    assert said.code == 0, said.err
    assert "warning" not in said.err
    assert "stopped after step 2 on purpose; resuming" in said.err


def test_a_bad_row_is_named_by_its_place(write, sftrun):
    said = sftrun("rehearse", write(["{not json"]))
    assert said.code == 1
    assert "train.jsonl:1" in said.err
