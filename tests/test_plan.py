"""`sftrun plan`: estimates memory before anything is loaded, and measures it on request."""

import json
import shutil

import drivers
import pytest
from conftest import talk

from sftrun import tiny
from sftrun.kinds import Estimating
from sftrun.memory import batches, changes
from sftrun.memory.machine import read_machine
from sftrun.recipe.validate import load
from sftrun.registry import current
from sftrun.types import BatchShape

ROWS = [talk("count to " + "x" * number, "y" * number) for number in range(1, 41)]
SHAPE = BatchShape([200, 150, 100, 50], 300)


@pytest.fixture
def recipe(write):
    """A recipe on the embedded model, with any keys replaced by overrides."""

    def made(*sets, **keys):
        return load(write(ROWS, **{"tuning": {"mode": "full"}, **keys}), list(sets))

    return made


def estimate(recipe, shape=SHAPE, evaluation=None):
    return (
        current()
        .create("backend", recipe.backend)
        .estimate(Estimating(recipe=recipe, training=shape, evaluation=evaluation))
    )


def step(footprint):
    return footprint.memory["forward and backward"]


@pytest.fixture
def folder(tmp_path):
    """A model folder without weights: a config, and the tokenizer of the embedded model."""

    def made(**config):
        path = tmp_path / "model"
        path.mkdir()
        for name in tiny.TOKENIZER_FILES:
            shutil.copyfile(tiny.folder() / name, path / name)
        (path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
        return path

    return made


def test_parameters_are_counted_exactly(recipe):
    attention, mlp = 128 * 128 * 2 + 128 * 64 * 2, 3 * 128 * 352
    norms = 2 * 128 + 2 * 32
    every = 768 * 128 + 2 * (attention + mlp + norms) + 128
    full = estimate(recipe())
    assert (full.trained, full.frozen) == (every, 0)
    lora = estimate(recipe("tuning.mode=lora", "tuning.lora.r=8"))
    ends = [(128, 128), (128, 64), (128, 64), (128, 128), (128, 352), (128, 352), (352, 128)]
    assert (lora.trained, lora.frozen) == (2 * 8 * sum(a + b for a, b in ends), every)


def test_only_trained_weights_have_gradients_and_states(recipe):
    full, lora, plain = (
        estimate(recipe(*sets)).memory["optimizer step"] for sets in ([], ["tuning.mode=lora"], ["train.optimizer=sgd"])
    )
    assert full["optimizer states"] == 2 * full["gradients"] == 2 * 4 * estimate(recipe()).trained
    assert lora["gradients"] < full["gradients"] / 3
    assert plain["optimizer states"] == 0


def test_activations_grow_with_the_batch_and_shrink_with_checkpointing(recipe):
    small, large = (
        step(estimate(recipe(), BatchShape([200] * 2, 300))),
        step(estimate(recipe(), BatchShape([200] * 8, 1200))),
    )
    assert large["activations"] == pytest.approx(4 * small["activations"], rel=0.05)
    again = step(estimate(recipe("train.gradient_checkpointing=true"), BatchShape([200] * 8, 1200)))
    assert again["activations"] < 0.7 * large["activations"]  # one of two layers, and what both start from


def test_gradient_accumulation_keeps_gradients_all_along(recipe):
    once, summed = (step(estimate(recipe(f"train.grad_accum={count}"))) for count in (1, 4))
    assert once["gradients"] <= summed["gradients"] == 4 * estimate(recipe()).trained


def test_packed_rows_take_no_memory_for_length_by_length(recipe):
    packed = step(estimate(recipe(packing={"strategy": "best-fit"}), BatchShape([50] * 16, 400, packed=True)))
    padded = step(estimate(recipe(), BatchShape([50] * 15 + [800], 400)))
    assert packed["activations"] < padded["activations"] / 10


def test_rows_of_one_length_need_no_mask(recipe):
    alike, padded = (step(estimate(recipe(), BatchShape([400, 400, 400, last], 800))) for last in (400, 399))
    assert padded["activations"] - alike["activations"] > 4 * 400 * 400


def test_eager_attention_takes_memory_for_length_by_length(recipe):
    shape = BatchShape([50] * 16, 400, packed=True)
    eager, sdpa = (
        step(estimate(recipe(f"train.attention={each}", packing={"strategy": "best-fit"}), shape))
        for each in ("eager", "sdpa")
    )
    assert eager["activations"] > 2 * sdpa["activations"]


def test_logits_are_computed_for_trained_positions_in_parts(recipe, monkeypatch):
    from sftrun.training.model import head

    few, many = (step(estimate(recipe(), BatchShape([400] * 8, trained)))["logits"] for trained in (800, 3200))
    assert many > 3 * few
    monkeypatch.setattr(head, "PART_BYTES", 2**20)
    assert step(estimate(recipe(), BatchShape([400] * 8, 3200)))["logits"] < many / 2


def test_4_bits_take_a_quarter_of_16_and_a_little_for_scales(recipe, folder):
    pytest.importorskip("bitsandbytes")
    path = folder(hidden_size=512, intermediate_size=2048, num_hidden_layers=4, num_attention_heads=8, vocab_size=768)
    sets = [f"model.name={path}", "train.precision=bf16"]
    lora, qlora = (
        step(estimate(recipe(*sets, *more))) for more in (["tuning.mode=lora"], ["tuning.mode=qlora", "backend=bnb"])
    )
    assert 0.25 < qlora["weights"] / lora["weights"] < 0.5  # embeddings, and one layer as it was, stay in 16


def test_a_model_whose_layers_depend_on_data_is_estimated_by_a_formula(recipe, folder):
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    path = folder(model_type="mixtral", vocab_size=768, num_key_value_heads=2, **sizes)
    found = estimate(recipe(f"model.name={path}"))
    assert ["formula" in note for note in found.notes] == [True]
    assert step(found)["activations"] > 0


def test_the_largest_batch_has_the_longest_rows(write, sftrun, tmp_path):
    file = write(ROWS)
    assert sftrun("prepare", file, "--out", tmp_path / "run").code == 0
    rows = batches.read_row_lengths(tmp_path / "run" / "prepared", "train")
    shape = batches.largest_training_batch(load(file, ["train.batch_size=3"]), rows)
    assert shape.lengths == sorted(rows.lengths.tolist())[-3:][::-1]
    assert batches.count_steps(load(file, ["train.batch_size=3", "train.grad_accum=2", "train.epochs=1.5"]), 40) == 11


def test_changes_keep_the_training_the_same_if_that_is_enough(recipe):
    wide = recipe("train.batch_size=32", "train.grad_accum=2")

    def ask(wanted):
        return estimate(wanted, batches.largest_training_batch(wanted, None))

    needed = changes.peak_bytes(ask(wide))
    found = list(changes.find_fitting_changes(wide, int(0.8 * needed), ask, current()))
    smaller, checkpointing, chosen = (sets for sets, _ in found)
    assert smaller["train.batch_size"] * smaller["train.grad_accum"] == 64
    assert checkpointing["train.gradient_checkpointing"] is True
    assert chosen == {"train.batch_size": "auto", "train.effective_batch_size": 64}
    assert all(size <= 0.8 * needed for _, size in found)


@pytest.mark.slow
def test_a_model_too_large_is_refused_from_its_config_alone(write, sftrun, folder):
    sizes = {"hidden_size": 16384, "intermediate_size": 2**20, "num_hidden_layers": 8, "num_attention_heads": 128}
    path = folder(vocab_size=768, **sizes)
    file = write(ROWS, model={"name": str(path)}, tuning={"mode": "full"})
    said = sftrun("plan", file, "--no-data")
    assert said.code == 1
    assert "does not fit: " in said.err
    assert "parameters trained; 0 frozen" in said.err
    assert "smaller model" in said.err


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A program that prints what nvidia-smi does where there are two GPUs: its format, not a part of sftrun."""
    return drivers.install(tmp_path, monkeypatch, drivers.H100, drivers.L4)


@pytest.mark.parametrize(
    ("visible", "name"),
    [
        (None, "NVIDIA H100"),
        ("1", "NVIDIA L4"),
        ("1,0", "NVIDIA L4"),
        ("GPU-8b", "NVIDIA L4"),
        ("GPU-8a1f", "NVIDIA H100"),
        ("", "CPU"),
        ("7", "CPU"),
    ],
)
def test_the_gpu_is_the_first_visible_one(driver, monkeypatch, visible, name):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = read_machine("cuda")
    assert found.name == name
    if name == "NVIDIA L4":
        assert (found.total, found.free) == (23034 * 2**20, 20000 * 2**20)


@pytest.mark.slow
def test_a_plan_with_a_probe_is_measured(write, sftrun):
    file = write({"train": ROWS[5:], "val": ROWS[:5]}, tuning={"mode": "full"}, train={"epochs": 2})
    said = sftrun("plan", file, "--probe", "--json")
    assert said.code == 0, said.err
    plan = json.loads(said.out)
    assert plan["verdict"] == "fits"
    assert (plan["data"]["rows"], plan["data"]["steps"]) == (35, 18)
    assert plan["peak"] == pytest.approx(plan["measured"]["peak"], rel=0.15)
    assert plan["measured"]["seconds"] == pytest.approx(18 * plan["measured"]["seconds_per_step"])


def test_an_interrupted_plan_names_no_run_to_resume(write):
    from sftrun.errors import Interrupted
    from sftrun.tools.plan import plan

    def stop(event):
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="nothing is kept except the prepared data"):
        plan(write(ROWS), watch=stop)
