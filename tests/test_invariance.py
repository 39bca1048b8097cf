"""One optimizer step is the same however its rows are cut into batches, and packed or not."""

import pytest
import torch
from safetensors.torch import load_file

import sftrun
from sftrun.events import Step
from sftrun.testing.bench import Bench, change_rows

pytestmark = pytest.mark.older

ONE_STEP = {
    "train.max_steps": 1,
    "train.optimizer": "sgd",  # its step is the gradient
    "train.learning_rate": 1.0,
    "train.scheduler": "constant",
    "train.warmup": 0,
    "train.max_grad_norm": 0,
    "train.logging_steps": 1,
    "train.save_strategy": "no",
    "train.eval_strategy": "no",
    "train.precision": "fp32",
    "train.dataloader_workers": 0,
}
SPLITS = {
    "one by one": {"train.batch_size": 1, "train.grad_accum": 8},
    "in pairs": {"train.batch_size": 2, "train.grad_accum": 4},
    "in three": {"train.batch_size": 3, "train.grad_accum": 3},
    "by length": {"train.batch_size": 2, "train.grad_accum": 4, "train.group_by_length": True},
    "packed": {"packing.strategy": "best-fit", "train.batch_size": 9},
    "packed, pack by pack": {"packing.strategy": "best-fit", "train.batch_size": 1, "train.grad_accum": 9},
    "packed, checkpointed": {
        "packing.strategy": "best-fit",
        "train.batch_size": 2,
        "train.grad_accum": 9,
        "train.gradient_checkpointing": True,
    },
}


@pytest.fixture(scope="module", params=["answers", "everything"])
def step(request, tmp_path_factory):
    """Trains one step on all rows; returns the event and the weights. `everything`: the very first token too."""
    bench = Bench(sftrun.create("backend", "hf"), [], tmp_path_factory.mktemp(request.param))

    def train(changes):
        run = bench.prepared({**ONE_STEP, **changes})
        if request.param == "everything":
            change_rows(run, lambda row: row.update(labels=row["input_ids"]))
        (event,) = bench.train(run).of(Step)
        return event, load_file(run.model / "model.safetensors")

    return train


@pytest.fixture(scope="module")
def whole(step):
    return step({"train.batch_size": 8})


@pytest.mark.parametrize("name", SPLITS)
def test_loss_and_gradient_do_not_depend_on_how_rows_are_batched(step, whole, name):
    event, weights = step(SPLITS[name])
    assert event["loss"] == pytest.approx(whole[0]["loss"], abs=1e-4)
    assert (event["tokens"], event["grad_norm"]) == (whole[0]["tokens"], pytest.approx(whole[0]["grad_norm"], rel=1e-4))
    for key, value in whole[1].items():
        torch.testing.assert_close(weights[key], value, rtol=0, atol=1e-5)


def test_another_row_changes_the_step_far_more(step, whole):
    """What the test above allows is rounding."""
    _, weights = step({"train.batch_size": 7})
    assert max((weights[key] - value).abs().max() for key, value in whole[1].items()) > 1e-3
