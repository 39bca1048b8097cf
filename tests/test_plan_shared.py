"""`sftrun plan` where processes share a model: the estimate is of one of them."""

import importlib.util
import json

import drivers
import pytest
from conftest import talk

from sftrun.kinds import Estimating
from sftrun.memory import batches, changes
from sftrun.recipe.validate import load
from sftrun.registry import current
from sftrun.training.memory import shares
from sftrun.training.memory.shares import Unit
from sftrun.types import BatchShape

ROWS = [talk("count to " + "x" * number, "y" * number) for number in range(1, 41)]
SHAPE = BatchShape([200, 150, 100, 50], 300)
MOMENT = "forward and backward"
GB = 10**9

# 8 billion weights in 32 blocks of 0.2 and a rest of 1.6, in bf16, of which adapters of 0.1 are trained
LORA = shares.ModelSize(
    weights=16 * GB,
    replicated=0,
    states=8 * GB // 10,
    parameters=8 * GB,
    trained=GB // 10,
    item=2,
    block=Unit(4 * GB // 10, 3_000_000),
    rest=Unit(32 * GB // 10, 0),
)


@pytest.fixture
def recipe(write):
    """A recipe on the embedded model, with overrides."""

    def made(*sets, **keys):
        return load(write(ROWS, **{"tuning": {"mode": "full"}, **keys}), list(sets))

    return made


@pytest.fixture
def shared(recipe):
    """The same, for two processes that share the model."""
    return lambda strategy, *sets: recipe("launch.processes=2", f"launch.strategy={strategy}", *sets)


def estimate(recipe, shape=SHAPE, evaluation=None):
    return (
        current()
        .create("backend", recipe.backend)
        .estimate(Estimating(recipe=recipe, training=shape, evaluation=evaluation))
    )


def test_fsdp_divides_all_but_what_is_gathered():
    four, eight = (shares.fsdp(LORA, processes, gloo=False) for processes in (4, 8))
    assert (four.weights, eight.weights) == (4 * GB, 2 * GB)
    assert (four.states, eight.states) == (GB // 5, GB // 10)
    assert (four.gradients, eight.gradients) == (GB // 10, GB // 20)
    assert four.gathered == eight.gathered
    assert four.gathered == LORA.rest.full + 2 * LORA.block.full + LORA.block.trained * (2 + 4)


def test_what_is_not_a_weight_is_in_each_process():
    fields = {name: getattr(LORA, name) for name in LORA.__struct_fields__}
    scales = shares.ModelSize(**fields | {"replicated": GB})
    assert shares.fsdp(scales, 4, gloo=False).weights == GB + 15 * GB // 4


def test_zero_2_divides_gradients_and_states_and_zero_3_weights_too():
    two, three = (shares.zero(LORA, 4, stage, gloo=False) for stage in (2, 3))
    fp32_share = 4 * LORA.trained // 4
    assert (two.weights, three.weights) == (16 * GB + fp32_share, 4 * GB + fp32_share)
    gradients = (2 + 4) * LORA.trained // 4  # as they are reduced, and in fp32 for the optimizer
    assert (two.states, two.gradients) == (three.states, three.gradients) == (GB // 5, gradients)
    assert three.gathered - two.gathered == 2 * shares.LIVE


def test_gloo_copies_what_it_sends():
    gpu, cpu = (shares.fsdp(LORA, 2, gloo).gathered for gloo in (False, True))
    assert cpu - gpu == LORA.block.full + 4 * LORA.block.trained
    gpu, cpu = (shares.zero(LORA, 2, 3, gloo).gathered for gloo in (False, True))
    assert gpu == 2 * (shares.LIVE + shares.BUCKET + LORA.trained)
    assert cpu == 2 * (shares.LIVE + 3 * LORA.trained)  # untouched pages of the bucket take no memory


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")
def test_buckets_are_as_large_as_deepspeed_has_them():
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    usual = DeepSpeedZeroConfig()
    assert usual.reduce_bucket_size == shares.BUCKET
    assert usual.max_live_parameters == usual.max_reuse_distance == shares.LIVE
    assert usual.prefetch_bucket_size == shares.PREFETCH


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed"])
def test_a_plan_is_of_one_process(recipe, shared, strategy):
    whole, part = (estimate(each) for each in (recipe(), shared(strategy, "launch.zero_stage=3")))
    for name in ("trained", "frozen", "checkpoint"):
        assert getattr(whole, name) == getattr(part, name)
    assert part.memory[MOMENT]["optimizer states"] == 4 * whole.trained  # two in fp32, of half of the weights
    assert part.memory[MOMENT]["gathered"] > 0
    assert "gathered" not in whole.memory[MOMENT]
    assert [strategy in note and "one of 2 processes" in note for note in part.notes] == [True]


def test_activations_are_not_shared(recipe, shared):
    whole, part = (estimate(each).memory[MOMENT] for each in (recipe(), shared("fsdp")))
    assert part["activations"] == pytest.approx(whole["activations"], rel=0.1)


def test_weights_are_gathered_in_the_precision_of_the_computation(shared):
    full, half = (estimate(shared("fsdp", f"train.precision={each}")).memory[MOMENT] for each in ("fp32", "bf16"))
    assert half["weights"] == full["weights"]
    assert half["gathered"] < full["gathered"]
    assert half["activations"] < 0.7 * full["activations"]


def test_processes_of_all_nodes_share(recipe, shared):
    nodes = recipe("launch.processes=2", "launch.nodes=2", "launch.strategy=fsdp")
    two, four = (estimate(each).memory[MOMENT] for each in (shared("fsdp"), nodes))
    assert four["optimizer states"] == two["optimizer states"] // 2
    assert four["gathered"] == two["gathered"]


def test_auto_is_as_many_processes_as_gpus(recipe, tmp_path, monkeypatch):
    asked = recipe("launch.strategy=fsdp")
    for count, said in ((4, "one of 4 processes"), (1, "there is only one")):
        drivers.install(tmp_path, monkeypatch, *[drivers.L4] * count)
        found = estimate(asked)
        assert [said in note for note in found.notes] == [True]
        assert found.memory[MOMENT]["optimizer states"] == 8 * found.trained // count


def test_changes_of_a_shared_recipe_are_of_one_process_too(shared):
    wide = shared("fsdp", "train.batch_size=32", "train.grad_accum=2")

    def ask(wanted):
        return estimate(wanted, batches.largest_training_batch(wanted, None))

    needed = changes.peak_bytes(ask(wide))
    found = list(changes.find_fitting_changes(wide, int(0.8 * needed), ask, current()))
    assert found[0][0]["train.batch_size"] * found[0][0]["train.grad_accum"] == 64
    assert found[-1][0] == {"train.batch_size": "auto", "train.effective_batch_size": 128}
    for sets, size in found[:-1]:
        assert size == changes.peak_bytes(ask(changes.apply_changes(wide, sets))) <= 0.8 * needed


@pytest.mark.slow
def test_a_plan_of_two_processes_is_near_what_they_take(write, sftrun):
    launch = {"processes": 2, "strategy": "fsdp"}
    file = write({"train": ROWS[5:], "val": ROWS[:5]}, tuning={"mode": "full"}, launch=launch)
    said = sftrun("plan", file, "--probe", "--json")
    assert said.code == 0, said.err
    plan = json.loads(said.out)
    assert plan["peak"] == pytest.approx(plan["measured"]["peak"], rel=0.15)
