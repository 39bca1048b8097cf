"""One optimizer step is the same however its rows are cut into batches, and packed or not."""

import json

import pyarrow as pa
import pytest
import torch
from conftest import talk
from safetensors.torch import load_file

from sftrun.kinds import Training

pytestmark = pytest.mark.older

ROWS = [talk(f"Count to {number}!", " ".join(map(str, range(number + 1)))) for number in range(8)]
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
    "in any order": {"train.batch_size": 2, "train.grad_accum": 4, "train.group_by_length": False},
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
    """Trains one step on all rows; returns the loss and the weights. `everything`: the very first token too."""
    from sftrun.flow import prepare
    from sftrun.training import train

    folder = tmp_path_factory.mktemp(request.param)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    source = {"use": "jsonl", "with": {"path": ".", "val_share": 0}}
    keys = {"model": {"name": "sftrun/tiny", "max_seq_len": 96}, "source": source, "tuning": {"mode": "full"}}
    (folder / "recipe.yaml").write_text(json.dumps(keys))

    def run(name, changes):
        import sftrun

        sets = [f"{key}={json.dumps(value)}" for key, value in {**ONE_STEP, **changes}.items()]
        made = prepare(folder / "recipe.yaml", sets, folder / name)
        if request.param == "everything":
            train_on_everything(made.prepared / "train.arrow")
        events = []
        train.train(Training(recipe=sftrun.load(folder / "recipe.yaml", sets), run=made, emit=events.append))
        (said,) = (event for event in events if event["event"] == "step")
        return said, load_file(made.model / "model.safetensors")

    return run


def train_on_everything(file):
    table = pa.ipc.open_stream(file.read_bytes()).read_all()
    table = table.set_column(1, "labels", table["input_ids"])
    file.unlink()  # it is also the cache's
    with pa.OSFile(str(file), "wb") as out, pa.ipc.new_stream(out, table.schema) as stream:
        stream.write_table(table)


@pytest.fixture(scope="module")
def whole(step):
    return step("whole", {"train.batch_size": 8})


@pytest.mark.parametrize("name", SPLITS)
def test_loss_and_gradient_do_not_depend_on_how_rows_are_batched(step, whole, name):
    said, weights = step(name, SPLITS[name])
    assert said["loss"] == pytest.approx(whole[0]["loss"], abs=1e-4)
    assert (said["tokens"], said["grad_norm"]) == (whole[0]["tokens"], pytest.approx(whole[0]["grad_norm"], rel=1e-4))
    for key, value in whole[1].items():
        torch.testing.assert_close(weights[key], value, rtol=0, atol=1e-5)


def test_another_row_changes_the_step_far_more(step, whole):
    """What the test above allows is rounding."""
    _, weights = step("fewer", {"train.batch_size": 7})
    assert max((weights[key] - value).abs().max() for key, value in whole[1].items()) > 1e-3
