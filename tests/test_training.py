"""The backend hf on the embedded model: what it trains, what it reports, and that it repeats itself."""

import json
import math
import subprocess
import sys

import pytest
from conftest import talk

from sftrun.kinds import Exporting, Loading

pytestmark = pytest.mark.older

ROWS = [talk(f"What comes after {number}?", str(number + 1)) for number in range(60)]
DATA = {"train": ROWS[:40], "val": ROWS[40:50], "test": ROWS[50:]}
TRAIN = {"max_steps": 12, "learning_rate": 5e-3, "batch_size": 8, "logging_steps": 1, "save_strategy": "no"}
EVALUATORS = [
    "loss",
    {"use": "generation", "with": {"max_new_tokens": 8}},
    {"use": "judge", "with": {"max_new_tokens": 8}},
]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    for split, rows in DATA.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {
        "model": {"name": "sftrun/tiny", "max_seq_len": 64},
        "source": {"use": "jsonl", "with": {"path": "."}},
        "tuning": {"mode": "full"},
        "train": TRAIN,
        "evaluators": EVALUATORS,
    }
    (folder / "recipe.yaml").write_text(json.dumps(keys))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def full(recipe):
    import sftrun

    return sftrun.run(recipe, out=recipe.parent / "full")


@pytest.fixture(scope="module")
def lora(recipe, full):
    import sftrun

    sets = [
        f"model.name={full.model}",
        "tuning.mode=lora",
        "exporters=[merged]",
        "transforms=[{use: style, with: {prompt: Count.}}]",
        "train.eval_strategy=steps",
        "train.eval_steps=5",
        "train.save_strategy=steps",
        "train.save_steps=5",
    ]
    return sftrun.run(recipe, sets, out=recipe.parent / "lora")


def steps(run):
    return [event for event in run.events() if event["event"] == "step"]


def test_the_loss_falls_and_is_reported_step_by_step(full):
    losses = [event["loss"] for event in steps(full)]
    assert len(losses) == 12
    assert losses[-1] < losses[0] / 2
    assert steps(full)[-1]["steps"] == 12


def test_events_count_every_token_that_was_trained(full):
    prepared = full.read_json("prepared/stats.json")["train"]
    last = steps(full)[-1]  # 12 steps of 8 rows: two passes of 40 rows, and two batches of a third
    assert 2 * prepared["tokens"] < last["tokens"] < 3 * prepared["tokens"]
    assert last["trained_tokens"] / last["tokens"] == pytest.approx(
        prepared["trained_tokens"] / prepared["tokens"], rel=0.1
    )


@pytest.mark.slow
def test_the_same_recipe_gives_the_same_weights_byte_for_byte_and_another_seed_does_not(recipe, full):
    import sftrun

    sets = ["evaluators=[]"]
    again = sftrun.run(recipe, sets, out=recipe.parent / "again")
    other = sftrun.run(recipe, [*sets, "seed=1"], out=recipe.parent / "other")
    weights = [(run.model / "model.safetensors").read_bytes() for run in (full, again, other)]
    assert weights[0] == weights[1] != weights[2]


def test_a_saved_model_says_after_loading_what_was_scored(full):
    """transformers alone, given the model folder, has the loss that the report shows."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(full.model)
    tokenizer = AutoTokenizer.from_pretrained(full.model)
    loss = tokens = 0
    for row in DATA["test"]:
        text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        asked = tokenizer.apply_chat_template(row["messages"][:1], tokenize=False, add_generation_prompt=True)
        ids = torch.tensor([tokenizer(text.rstrip("\n"))["input_ids"]])
        begin = len(tokenizer(asked)["input_ids"])
        logits = model(ids).logits[0, begin - 1 : -1]
        loss += torch.nn.functional.cross_entropy(logits, ids[0, begin:], reduction="sum").item()
        tokens += ids.shape[1] - begin
    assert full.read_json("eval/scores.json")["tuned"]["loss"]["test_loss"] == pytest.approx(loss / tokens, abs=1e-5)
    assert tokenizer.eos_token_id in model.generation_config.eos_token_id


def test_scores_are_of_both_models_on_the_same_prompts(full):
    from sftrun import tiny

    scores = full.read_json("eval/scores.json")
    assert set(scores["base"]) == set(scores["tuned"]) == {"loss", "generation", "judge"}
    assert scores["base"]["loss"]["test_loss"] == pytest.approx(math.log(tiny.ARCHITECTURE["vocab_size"]), abs=0.5)
    assert scores["tuned"]["loss"]["test_loss"] < scores["base"]["loss"]["test_loss"]
    samples = [json.loads(line) for line in (full.eval / "samples.jsonl").read_text().splitlines()]
    generation = [sample for sample in samples if sample["evaluator"] == "generation"]
    assert [sample["reference"] for sample in generation] == [row["messages"][1]["content"] for row in DATA["test"]]
    assert all("answer" in sample[which] for sample in samples for which in ("base", "tuned"))
    right = sum(sample["tuned"]["answer"] == sample["reference"] for sample in generation)
    assert scores["tuned"]["generation"]["exact_match"] == right / len(generation)


def test_the_lock_says_what_the_run_was_made_from(full):
    lock = full.read_json("lock.json")
    assert {"torch", "transformers", "trl"} <= set(lock["packages"])
    assert {plugin["name"] for plugin in lock["plugins"]} >= {"jsonl", "chat", "assistant", "hf", "loss"}


def test_the_state_says_what_was_found_out_in_each_stage(full):
    prepared, trained = full.facts("prepare"), full.facts("train")
    assert prepared["mask"] == full.read_json("prepared/proof.json")["hash"]
    parts = prepared["prepared"]
    assert [len(each) for each in (parts["template"], parts["tokenizer"], parts["source"]["fingerprint"])] == [64] * 3
    assert trained["parameters"]["trained"] == trained["parameters"]["all"] > 400_000


def test_every_stage_leaves_its_record_and_tensorboard_its_curves(full):
    state = full.read_json("state.json")
    assert {name: each["status"] for name, each in state.items()} == dict.fromkeys(
        ["prepare", "train", "evaluate", "report"], "done"
    )
    assert list(full.tensorboard.glob("**/events*"))
    assert "<html" in (full.path / "report.html").read_text()


def test_an_adapter_trains_alone_and_its_merge_says_the_same(lora):
    parameters = lora.facts("train")["parameters"]
    assert parameters["trained"] < parameters["all"] / 3
    facts = lora.read_json("export/facts.json")["merged"]
    assert facts["max_difference"] < 1e-4
    assert (lora.export / "merged/model.safetensors").is_file()
    assert (lora.export / "merged/chat_template.jinja").is_file()


def test_a_merge_that_says_something_else_is_refused(lora):
    from sftrun import Use, UserError, create

    exporter = create("exporter", Use(use="merged", with_={"max_difference": 1e-12}))
    with pytest.raises(UserError, match="differs from the adapter by"):
        exporter.export(Exporting(recipe=lora.recipe(), run=lora, emit=print))


def test_evaluation_and_checkpoints_come_when_the_recipe_says(lora):
    events = lora.events()
    assert [event["step"] for event in events if event["event"] == "eval"] == [5, 10, 12]
    assert [event["step"] for event in events if event["event"] == "checkpoint"] == [5, 10, 12]


def test_an_adapter_refuses_a_base_that_has_changed(lora, full, sftrun):
    from safetensors.torch import load_file, save_file

    weights = full.model / "model.safetensors"
    kept = weights.read_bytes()
    changed = load_file(weights)
    changed["model.norm.weight"] += 1
    save_file(changed, weights, metadata={"format": "pt"})
    try:
        said = sftrun("eval", lora.path)
        assert said.code == 1
        assert "does not match its base" in said.err
    finally:
        weights.write_bytes(kept)


def test_an_adapter_is_no_base(recipe, lora, sftrun, tmp_path):
    said = sftrun("run", recipe, "--set", f"model.name={lora.model}", "--out", tmp_path / "out")
    assert said.code == 1
    assert "holds an adapter, not a whole model" in said.err or "no tokenizer" in said.err


def test_a_loss_that_is_not_finite_stops_the_run(recipe, sftrun, tmp_path):
    said = sftrun(
        "run", recipe, "--set", "train.learning_rate=1e30", "--set", "train.max_grad_norm=0", "--out", tmp_path / "out"
    )
    assert said.code == 1
    assert "the loss is nan at step" in said.err or "the loss is inf at step" in said.err
    assert "lower train.learning_rate" in said.err
    assert not (tmp_path / "out/model").exists()


def test_generate_answers_a_file_of_prompts(full, sftrun, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("What comes after 3?\nWhat comes after 4?\n")
    said = sftrun("generate", full.path, prompts, "--max-new-tokens", 8)
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert [row["prompt"] for row in rows] == ["What comes after 3?", "What comes after 4?"]
    assert all(isinstance(row["answer"], str) for row in rows)


PLAIN = """
import json, sys

sys.modules["sftrun"] = None  # importing it fails from now on
import transformers
from peft import AutoPeftModelForCausalLM

folder, kind, prompts = sys.argv[1:]
model = (AutoPeftModelForCausalLM if kind == "adapter" else transformers.AutoModelForCausalLM).from_pretrained(folder)
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
for prompt in open(prompts).read().splitlines():
    talk = [{"role": "user", "content": prompt}]
    asked = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = model.generate(**asked, do_sample=False, max_new_tokens=16)[0, asked["input_ids"].shape[1] :]
    print(json.dumps(tokenizer.decode(made, skip_special_tokens=True).strip()))
"""


@pytest.mark.slow
def test_without_sftrun_other_tools_load_what_was_made_and_answer_the_same(lora, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"What comes after {number}?" for number in range(9)))

    def said(*words):
        done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, check=True)
        return [json.loads(line) for line in done.stdout.splitlines()], done.stderr

    ours, noise = said("-m", "sftrun", "generate", lora.path, prompts, "--max-new-tokens", 16, "--no-system")
    assert "kernels" not in noise  # what others would tell whoever loads an adapter
    assert "deprecated" not in noise
    for folder, kind in ((lora.model, "adapter"), (lora.export / "merged", "merged")):
        assert said("-c", PLAIN, folder, kind, prompts)[0] == [row["answer"] for row in ours]


def test_generate_names_the_line_of_a_bad_prompt(full, sftrun, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "hi"}\n{"text": "hi"}\n')
    said = sftrun("generate", full.path, prompts)
    assert said.code == 1
    assert "prompts.jsonl:2: error: a line needs" in said.err


def test_chat_answers_what_is_typed(full, sftrun, monkeypatch):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("What comes after 3?\n\n"))
    said = sftrun("chat", full.path, "--max-new-tokens", 8)
    assert said.code == 0
    assert len(said.out.splitlines()) >= 1


def test_eval_scores_a_run_again_to_the_same_numbers(full, sftrun):
    before = full.read_json("eval/scores.json")
    said = sftrun("eval", full.path, "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out) == before


def test_a_few_rows_without_a_validation_split_train_and_it_is_said(sftrun, write, tmp_path):
    recipe = write(ROWS[:3], tuning={"mode": "full"}, train={"epochs": 1, "save_strategy": "no"}, source_options={})
    said = sftrun(recipe, "--set", "source.with.val_share=0", "--out", tmp_path / "out")
    assert said.code == 0, said.err
    assert "warning: there are no validation rows" in said.err
    assert (tmp_path / "out/model/model.safetensors").is_file()


@pytest.mark.slow
def test_early_stopping_that_comes_too_late_to_stop_anything_is_said(sftrun, write, tmp_path):
    train = {"epochs": 2, "batch_size": 8, "early_stopping": {"patience": 2}}
    rows = {"train": ROWS[:16], "val": ROWS[16:20]}
    late = sftrun(write(rows, train=train), "--out", tmp_path / "late")
    assert late.code == 0, late.err
    assert "early_stopping never stops this training: it has 2 evaluations, and with patience 2 it can" in late.err
    often = ["train.eval_strategy=steps", "train.eval_steps=1"]
    said = sftrun(
        tmp_path / "recipe.yaml", *(word for each in often for word in ("--set", each)), "--out", tmp_path / "b"
    )
    assert "never stops this training" not in said.err


@pytest.mark.parametrize("split", [None, "test"])
def test_prompts_that_are_not_there_are_missed_before_training(sftrun, write, tmp_path, split):
    evaluators = [{"use": "generation", "with": {"split": split}}]
    said = sftrun(write(ROWS[:3], evaluators=evaluators), "--out", tmp_path / "out")
    assert said.code == 1
    assert "no held-out prompts to answer: the data have no rows in " in said.err
    assert "recipe.yaml:" in said.err
    assert not (tmp_path / "out/model").exists()


@pytest.mark.parametrize("which", ["base", "tuned"])
def test_a_model_is_evaluated_in_the_precision_of_the_computation(recipe, full, which):
    import torch

    import sftrun

    described = sftrun.load(recipe, ["train.precision=bf16"])
    model = sftrun.create("backend", "hf").load(Loading(recipe=described, run=full, which=which))
    assert model.model.dtype == torch.bfloat16
    assert model.losses("val").tokens > 0
