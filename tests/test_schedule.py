"""The learning rate of every step: no step has a rate of 0, and what a recipe asks for and does not get is said."""

import json

import pytest
from conftest import talk
from safetensors.torch import load_file

import sftrun
from sftrun.events import Step, Warned
from sftrun.testing.bench import Bench

pytestmark = pytest.mark.older

PEAK = 1e-3
TRAIN = {
    "train.logging_steps": 1,
    "train.batch_size": 4,  # 2 steps an epoch
    "train.learning_rate": PEAK,
    "train.save_strategy": "no",
    "train.eval_strategy": "no",
}
ROWS = [talk(f"What comes after {number}?", str(number + 1)) for number in range(16)]


@pytest.fixture
def bench(tmp_path):
    return Bench(sftrun.create("backend", "hf"), [], tmp_path)


@pytest.fixture
def trained(bench):
    """Trains with keys of `train`."""
    return lambda **train: bench.trained({**TRAIN, **{f"train.{name}": value for name, value in train.items()}})


def rates(attempt):
    return [event.learning_rate / PEAK for event in attempt.of(Step)]


def warnings(attempt):
    return [event.message for event in attempt.of(Warned)]


def test_the_only_step_of_a_training_trains(bench):
    only = {"train.max_steps": 1, "tuning.mode": "lora"}
    attempt = bench.trained({**TRAIN, **only})
    assert rates(attempt) == [1]
    weights = load_file(attempt.run.model / "adapter_model.safetensors")
    assert all(weight.any() for name, weight in weights.items() if "lora_B" in name)  # they begin as 0


@pytest.mark.parametrize("scheduler", ["constant", "linear", "cosine"])
def test_a_warm_up_starts_above_0_and_is_followed_by_the_peak(trained, scheduler):
    found = rates(trained(warmup=3, epochs=4, scheduler=scheduler))
    assert found[:4] == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1])
    after = {"constant": [1] * 4, "linear": [0.8, 0.6, 0.4, 0.2], "cosine": [0.9045, 0.6545, 0.3455, 0.0955]}
    assert found[4:] == pytest.approx(after[scheduler], abs=1e-4)


def test_by_default_a_short_training_has_no_warm_up(trained):
    attempt = trained(epochs=2)
    assert rates(attempt)[0] == max(rates(attempt)) == 1
    assert not [message for message in warnings(attempt) if "warm" in message]


def test_a_longer_training_has_the_warm_up_that_the_recipe_says(trained):
    assert rates(trained(max_steps=4, epochs=34))[0] == 1
    assert rates(trained(epochs=34))[:3] == pytest.approx([1 / 3, 2 / 3, 1])


@pytest.mark.parametrize(
    ("warmup", "message"),
    [
        (10, "the learning rate never reaches its peak: train.warmup is 10 steps, and training has 4"),
        (4, "the learning rate never reaches its peak: train.warmup is 4 steps, and training has 4"),
        (0.2, "there is no warm-up: train.warmup is a share of 0.2, which is less than one of 4 steps"),
    ],
)
def test_a_warm_up_that_is_all_of_a_training_or_none_of_it_is_said(trained, warmup, message):
    attempt = trained(epochs=2, warmup=warmup)
    assert [each for each in warnings(attempt) if each.startswith(message)]
    assert min(rates(attempt)) > 0


def test_rows_are_grouped_by_length_only_if_the_recipe_says_so(bench, trained):
    long = [json.dumps(talk("Say x.", "x" * (1 + index % 60))) + "\n" for index in range(400)]
    (bench.folder / "train.jsonl").write_text("".join(long))
    default, same, other = ({}, {"group_by_length": False}, {"group_by_length": True})
    losses = [trained(max_steps=3, epochs=1, **each).losses() for each in (default, same, other)]
    assert losses[0] == losses[1] != losses[2]


def test_a_warm_up_of_a_step_and_a_half_is_an_error(write, sftrun):
    said = sftrun("validate", write(ROWS, train={"warmup": 1.5}))
    assert said.code == 1
    assert "warmup 1.5 is neither a share of all steps nor a whole number of steps" in said.out + said.err


def test_a_share_of_the_steps_is_not_lost_to_rounding(write):
    recipe = sftrun.load(write(ROWS, train={"warmup": 0.29}))
    assert recipe.train.warmup_steps(100) == 29


@pytest.mark.slow
def test_the_plan_says_how_long_the_warm_up_is(write, sftrun):
    recipe = write(ROWS, tuning={"mode": "full"}, train={"epochs": 1, "warmup": 2})
    planned = sftrun("plan", recipe, "--json")
    assert json.loads(planned.out)["data"]["warmup_steps"] == 2
    said = sftrun("plan", recipe, "--set", "train.warmup=9")
    assert "4 steps, a warm-up of 9, which never reaches the peak;" in said.out + said.err


@pytest.mark.slow
def test_a_rehearsal_does_not_warn_of_a_warm_up_that_is_right_for_the_whole_training(write, sftrun):
    said = sftrun("rehearse", write(ROWS, train={"warmup": 50}))
    assert said.code == 0
    assert "peak" not in said.out + said.err


@pytest.mark.slow
def test_the_card_says_how_long_the_warm_up_was(write, tmp_path):
    train = {"epochs": 1, "warmup": 2, "logging_steps": 1, "save_strategy": "no", "eval_strategy": "no"}
    run = sftrun.run(write(ROWS, tuning={"mode": "full"}, train=train), out=tmp_path / "run")
    assert "| schedule | cosine, a warm-up of 2 |" in (run.path / "README.md").read_text()
