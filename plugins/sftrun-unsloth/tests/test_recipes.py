"""The recipe for Llama 3 runs in small: a tiny model of its architecture and template, rows with FineTome's columns."""

import importlib
import json
from pathlib import Path

import pytest

import sftrun
from sftrun import tiny

pytestmark = pytest.mark.unsloth

RECIPE = Path(__file__).parent.parent / "recipes" / "llama3-8b-qlora-unsloth.yaml"
CONFIG = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
CONFIG |= {"num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192}
MARKS = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A model folder with the architecture, the template and the control tokens of Llama 3, and tiny random weights."""
    importlib.import_module("sftrun_unsloth._first")  # before transformers, for what comes after this test
    import tokenizers
    import trl

    from sftrun.recipe.model import ModelOptions
    from sftrun.tools import shrink

    whole, small = tmp_path / "config", tmp_path / "llama"
    for folder in (whole, small):
        folder.mkdir()
    engine = tokenizers.Tokenizer.from_file(str(tiny.folder() / "tokenizer.json"))
    engine.add_special_tokens(MARKS)
    engine.save(str(whole / "tokenizer.json"))
    template = (Path(trl.__file__).parent / "chat_templates/llama3.jinja").read_text("utf-8")
    special = {"bos_token": MARKS[0], "eos_token": MARKS[1], "pad_token": "<|endoftext|>"}
    special |= {"chat_template": template, "tokenizer_class": "PreTrainedTokenizerFast"}
    (whole / "tokenizer_config.json").write_text(json.dumps(special))
    ids = {"bos_token_id": engine.token_to_id(MARKS[0]), "eos_token_id": engine.token_to_id(MARKS[1])}
    (whole / "config.json").write_text(json.dumps({**CONFIG, **ids, "vocab_size": engine.get_vocab_size()}))
    shrink.save_tiny_model(whole, small, 0, ModelOptions(name=str(whole)))
    return small


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A dataset with the columns of FineTome, as `save_to_disk` leaves it."""
    import datasets

    talks = [
        {
            "conversations": [
                {"from": "human", "value": f"What comes after {number}?"},
                {"from": "gpt", "value": f"{number + 1}."},
            ],
            "source": "numbers",
            "score": 5.0,
        }
        for number in range(60)
    ]
    datasets.DatasetDict({"train": datasets.Dataset.from_list(talks)}).save_to_disk(str(tmp_path / "rows"))
    return tmp_path / "rows"


def test_the_recipe_for_llama_3_runs_from_its_rows_to_its_merge(llama: Path, rows: Path, tmp_path: Path) -> None:
    sets = [f"model.name={llama}", f"source.with.name={rows}", "train.optimizer=adamw", "train.max_steps=2"]
    sets += ["source.with.train=train[:40]", "source.with.val=train[40:50]", "source.with.test=train[50:]"]
    sets += ["train.eval_steps=2", "train.save_steps=2", "train.logging_steps=1"]
    sets += ["evaluators.1.with.limit=2", "evaluators.1.with.max_new_tokens=4"]
    sets += ["exporters=[merged]"]  # unsloth's own merges into a 4-bit base on a GPU only
    run = sftrun.run(RECIPE, sets, tmp_path / "run")
    assert run.facts("train")["backend"]["used"] == "unsloth"
    assert set(run.read_json("eval/scores.json")["tuned"]) == {"loss", "generation"}
    assert list(run.export.rglob("*.safetensors"))
