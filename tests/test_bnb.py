"""The backend bnb: the base really is in 4 or 8 bits, trains like any other, and merges as what it was trained on."""

import json
import shutil

import pytest
import torch
from conftest import talk

import sftrun as api
from sftrun.flow import prepare
from sftrun.kinds import Exporting, Loading, Training

pytest.importorskip("bitsandbytes")

ROWS = [talk(f"What comes after {number}?", str(number + 1)) for number in range(40)]
IDS = torch.randint(0, 700, (2, 24), generator=torch.Generator().manual_seed(1))
QLORA = {"tuning.mode": "qlora", "backend": "bnb"}
LORA_8 = {"tuning.mode": "lora", "backend": "bnb"}
KEYS = {
    "model": {"name": "sftrun/tiny", "max_seq_len": 64},
    "source": {"use": "jsonl", "with": {"path": "train.jsonl", "val_share": 0.2}},
    "train": {"max_steps": 8, "batch_size": 8, "logging_steps": 1, "learning_rate": 0.01, "save_strategy": "no"},
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Makes a run directory with prepared rows for a recipe with these keys."""
    folder = tmp_path_factory.mktemp("bnb")
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "recipe.yaml").write_text(json.dumps(KEYS))

    def make(**sets):
        overrides = [f"{key}={json.dumps(value)}" for key, value in {**QLORA, **sets}.items()]
        return prepare(folder / "recipe.yaml", overrides, folder / f"run-{len(list(folder.iterdir()))}")

    return make


def options(**with_):
    return {"backend": {"use": "bnb", "with": with_}}


def recipe_of(run):
    return run.recipe()


def train(run):
    """Trains in this process and returns the events."""
    events, recipe = [], recipe_of(run)
    api.create("backend", recipe.backend).train(Training(recipe=recipe, run=run, emit=events.append))
    return events


def losses(events, name="step"):
    return [event["loss"] for event in events if event["event"] == name]


def load(run, which="tuned"):
    return api.create("backend", recipe_of(run).backend).load(Loading(recipe=recipe_of(run), run=run, which=which))


def held(run):
    """The layers of the base that are held in few bits."""
    import bitsandbytes

    kinds = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    return {name: module for name, module in load(run, "base").model.named_modules() if isinstance(module, kinds)}


def logits(model):
    with torch.inference_mode():
        return model.eval()(input_ids=IDS, use_cache=False).logits.float()


@pytest.fixture(scope="module")
def trained(prepared):
    run = prepared(**{"train.eval_strategy": "steps", "train.eval_steps": 3})
    return run, train(run)


def test_the_loss_falls_on_a_base_in_four_bits(trained):
    _, events = trained
    assert len(losses(events)) == 8
    assert losses(events)[-1] < losses(events)[0] / 1.3


def test_the_base_is_in_four_bits_all_but_its_embeddings_and_norms(trained):
    layers = held(trained[0])
    assert len(layers) == 2 * 7
    weights = sum(layer.in_features * layer.out_features for layer in layers.values())
    bytes_ = sum(layer.weight.numel() * layer.weight.element_size() for layer in layers.values())
    assert bytes_ == weights / 2
    kinds = {type(layer).__name__ for layer in layers.values()}
    assert kinds == {"Linear4bit"}
    assert all(layer.weight.quant_state.nested for layer in layers.values())


def test_only_the_adapter_is_trained_and_it_is_kept_in_full_precision(trained):
    from safetensors.torch import load_file

    run, _ = trained
    saved = load_file(run.model / "adapter_model.safetensors")
    assert {name.split(".")[-2] for name in saved} == {"lora_A", "lora_B"}
    assert sum(weight.numel() for weight in saved.values()) == run.facts("train")["parameters"]["trained"]
    assert any((weight != weight.bfloat16().float()).any() for weight in saved.values())
    assert run.read_json("model/base.json")["quantisation"]["bits"] == 4


def test_the_same_seed_gives_the_same_losses_and_evaluations_between_change_nothing(trained, prepared):
    """On a CPU with AVX512-BF16, bitsandbytes would pack the weights anew for an evaluation, and round them."""
    again = train(prepared(**{"train.eval_strategy": "no"}))
    assert losses(again) == losses(trained[1])


def test_a_saved_adapter_says_after_loading_what_training_said_last(trained):
    run, events = trained
    sums = load(run).losses("val")
    assert sums.loss / sums.tokens == pytest.approx(losses(events, "eval")[-1], abs=1e-6)
    assert torch.equal(logits(load(run).model), logits(load(run).model))


def test_a_run_on_four_bits_with_an_optimizer_of_eight_goes_on_to_the_same_adapter(prepared):
    sets = {"train.optimizer": "adamw_8bit", "tuning.lora.r": 32, "train.learning_rate": 1e-3, "train.max_steps": 4}
    run = prepared(**sets, **{"train.save_strategy": "steps", "train.save_steps": 2})
    train(run)
    whole = (run.model / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(run.model)
    shutil.rmtree(run.checkpoints / "checkpoint-4")
    assert any(event["event"] == "resumed" and event["step"] == 2 for event in train(run))
    assert (run.model / "adapter_model.safetensors").read_bytes() == whole


def test_a_merge_is_into_the_dequantised_base_and_one_in_place_would_lose_most(trained):
    from transformers import AutoModelForCausalLM

    run, _ = trained
    facts = api.create("exporter", "merged").export(Exporting(recipe=recipe_of(run), run=run, emit=print))
    assert facts["base"] == "dequantised from 4 bits"
    assert facts["max_difference"] < 1e-4
    assert facts["same_argmax"] == 1
    before, merged = logits(load(run).model), AutoModelForCausalLM.from_pretrained(run.export / "merged")
    assert "quantization_config" not in json.loads((run.export / "merged/config.json").read_text())
    assert (before - logits(merged)).abs().max() < 1e-4
    in_place = load(run).model.merge_and_unload()
    assert (before - logits(in_place)).abs().max() > 0.1


def test_a_base_in_eight_bits_trains_and_merges_too(prepared):
    run = prepared(**LORA_8, **{"train.eval_strategy": "epoch"})
    events = train(run)
    assert losses(events)[-1] < losses(events)[0] / 1.3
    assert {type(layer).__name__ for layer in held(run).values()} == {"Linear8bitLt"}
    sums = load(run).losses("val")
    assert sums.loss / sums.tokens == pytest.approx(losses(events, "eval")[-1], abs=1e-4)
    facts = api.create("exporter", "merged").export(Exporting(recipe=recipe_of(run), run=run, emit=print))
    assert facts["base"] == "dequantised from 8 bits"


def test_qlora_may_have_eight_bits(prepared):
    assert {type(layer).__name__ for layer in held(prepared(**options(bits=8))).values()} == {"Linear8bitLt"}


HELD = {
    "type": ("fp4", lambda layer: layer.weight.quant_type),
    "double_quant": (False, lambda layer: layer.weight.quant_state.nested),
    "compute_dtype": ("bf16", lambda layer: str(layer.compute_dtype)),
    "storage_dtype": ("bf16", lambda layer: str(layer.weight.dtype)),
}


@pytest.mark.parametrize("option", HELD)
def test_every_option_changes_how_the_base_is_held_and_it_trains(option, prepared):
    value, seen = HELD[option]
    run = prepared(**options(**{option: value}), **{"train.max_steps": 2})
    usual, other = (seen(next(iter(held(each).values()))) for each in (prepared(), run))
    assert usual != other
    assert len(losses(train(run))) == 2
    facts = api.create("exporter", "merged").export(Exporting(recipe=recipe_of(run), run=run, emit=print))
    assert facts["max_difference"] < (0.1 if option == "compute_dtype" else 1e-4)


def test_loftq_starts_nearer_to_the_exact_model_than_four_bits_alone(prepared):
    from sftrun.training.model import load
    from sftrun.training.model.adapter import attach

    run = prepared(**{"tuning.lora.init": "loftq", "tuning.lora.r": 16, "tuning.lora.alpha": 40})
    recipe, quantisation = recipe_of(run), api.create("backend", "bnb").quantisation(recipe_of(run))
    exact, rounded = (logits(load.load_base(recipe, held)) for held in (None, quantisation))
    adapter = attach(load.load_base(recipe, quantisation), recipe, run, print)
    assert (logits(adapter.model) - exact).norm() < 0.9 * (rounded - exact).norm()


def test_activations_may_be_computed_twice(trained, prepared):
    twice = train(prepared(**{"train.gradient_checkpointing": True}))
    assert losses(twice) == pytest.approx(losses(trained[1]), rel=1e-5)


def test_packed_rows_are_kept_apart_on_a_base_in_four_bits(prepared):
    packed = losses(train(prepared(**{"packing.strategy": "best-fit", "train.max_steps": 4})))
    assert packed[-1] < packed[0]


def test_dora_trains_on_four_bits(prepared):
    run = prepared(**{"tuning.lora.dora": True, "train.eval_strategy": "epoch"})
    events = train(run)
    assert losses(events)[-1] < losses(events)[0]
    assert load(run).losses("val").loss == pytest.approx(
        losses(events, "eval")[-1] * load(run).losses("val").tokens, rel=1e-5
    )


def test_a_module_in_few_bits_cannot_be_trained_in_full(prepared):
    sets = {"tuning.lora.modules_to_save": ["down_proj"], "tuning.lora.target_modules": ["q_proj"]}
    with pytest.raises(api.UserError, match="down_proj is quantised by the backend"):
        train(prepared(**sets))


EIGHT_BITS = ["adamw_8bit", "paged_adamw_8bit", "lion_8bit", "paged_lion_8bit"]


@pytest.mark.parametrize("optimizer", [*EIGHT_BITS, "paged_adamw_32bit"])
def test_optimizers_of_bitsandbytes_keep_the_state_that_their_names_say(optimizer, prepared):
    """Where weights have 4,096 numbers or more; smaller ones stay in 32 bits."""
    sets = {"train.optimizer": optimizer, "tuning.lora.r": 32, "train.learning_rate": 1e-3, "train.max_steps": 3}
    run = prepared(**sets, **{"train.save_strategy": "epoch"})
    events = train(run)
    said = [event["message"] for event in events if event["event"] == "warning"]
    if optimizer.startswith("paged_"):
        assert any("is not paged without a GPU" in message for message in said)
    (file,) = run.checkpoints.glob("*/optimizer.pt")
    state = [
        kept.get("__bnb_optimizer_quant_state__", kept)  # what later releases wrap it in
        for kept in torch.load(file, weights_only=True)["state"].values()
    ]
    large = {kept["state1"].dtype for kept in state if kept["state1"].numel() >= 4096}
    assert large == {torch.uint8 if optimizer in EIGHT_BITS else torch.float32}


@pytest.mark.gpu
def test_a_paged_state_is_in_pages():
    """Pages are memory that a GPU and its host share."""
    import bitsandbytes

    weight = torch.nn.Parameter(torch.randn(512, 512, device="cuda"))
    optimizer = bitsandbytes.optim.PagedAdamW8bit([weight])
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    assert optimizer.state[weight]["state1"].is_paged


WRONG = {
    "tuning.mode qlora needs a base in 4 bits, and the backend hf keeps it as it is": {"tuning": {"mode": "qlora"}},
    "cannot be trained in full": {"tuning": {"mode": "full"}, "backend": "bnb"},
    "LoRA on a base in 4 bits is tuning.mode qlora": {"tuning": {"mode": "lora"}, **options(bits=4)},
    "type is an option of 4 bits": {"tuning": {"mode": "lora"}, **options(type="fp4")},
    "storage_dtype is an option of 4 bits": {"tuning": {"mode": "qlora"}, **options(bits=8, storage_dtype="bf16")},
    "init pissa changes the weights": {"tuning": {"mode": "qlora", "lora": {"init": "pissa"}}, "backend": "bnb"},
    "init loftq is for": {"tuning": {"mode": "qlora", "lora": {"init": "loftq"}}, **options(type="fp4")},
}


@pytest.mark.parametrize("reason", WRONG)
def test_what_does_not_go_together_is_said_before_anything_runs(reason, write):
    problems = api.validate(write(ROWS, **WRONG[reason]))
    assert [problem for problem in problems if reason in problem.message]


def test_dora_on_eight_bits_is_refused_on_a_cpu_where_it_fails(write):
    recipe = api.load(write(ROWS, backend="bnb", tuning={"mode": "lora", "lora": {"dora": True}}))
    problems = list(api.create("backend", recipe.backend).check_machine(recipe))
    assert ["needs a GPU" in each.message for each in problems] == [True]


def test_without_bitsandbytes_the_extra_that_brings_it_is_named(write, monkeypatch):
    monkeypatch.setattr("sftrun.errors.find_spec", lambda name: None if name == "bitsandbytes" else True)
    for keys in ({"backend": "bnb", "tuning": {"mode": "qlora"}}, {"train": {"optimizer": "adamw_8bit"}}):
        recipe = api.load(write(ROWS, **keys))
        problems = list(api.create("backend", recipe.backend).check_machine(recipe))
        assert [problem.hint for problem in problems] == ["pip install 'sftrun[bnb]'"]
