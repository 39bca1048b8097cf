"""A run of unsloth that is stopped at any moment resumes to identical weights, byte for byte."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

import sftrun

pytestmark = [pytest.mark.unsloth, pytest.mark.timeout(300)]

EVERY = [
    "train.epochs=10",
    "train.max_steps=24",
    "train.save_strategy=steps",
    "train.save_steps=4",
    "train.grad_accum=2",
]
EVERY += ["train.batch_size=4", "train.eval_strategy=steps", "train.eval_steps=6"]
ADAPTER = "tuning.lora={r: 4, dropout: 0.1}"
MODES = {
    "full": [*EVERY, "tuning.mode=full"],
    "lora": [*EVERY, "tuning.mode=lora", ADAPTER, "train.logging_steps=3"],
    "qlora": [*EVERY, "tuning.mode=qlora", ADAPTER, "train.optimizer=adafactor"],
}


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """Runs that were never stopped, by mode."""
    made = {}

    def run(mode):
        if mode not in made:
            made[mode] = ended(prepared(recipe, tmp_path_factory.mktemp(mode) / "run", mode))
        return made[mode]

    return run


def prepared(recipe, out, mode):
    return sftrun.prepare(recipe, MODES[mode], out)


def ended(run):
    """Trains in this process, to the end."""
    from sftrun.stages.train import train_in_worker

    train_in_worker(run.recipe(), run, run.event)
    return run


def command(run, **settings):
    words = [sys.executable, "-m", "sftrun", "resume", str(run.path)]
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True, **settings)


def said(process):
    error = process.communicate(timeout=200)[1]
    return process.returncode, error


def wait_for(run, kind, step, process):
    """Returns at the moment when the event of this step, or of a later one, is written."""
    while process.poll() is None:
        file = run.path / "events.jsonl"
        lines = file.read_text().split("\n")[:-1] if file.is_file() else []
        if any(event["event"] == kind and event["step"] >= step for event in map(json.loads, lines)):
            return
        time.sleep(0.002)
    raise AssertionError(process.communicate()[1])


def weights(run):
    return next(run.model.glob("*.safetensors")).read_bytes()


def curves(run):
    from sftrun.runs import history

    past = history.build_history(run.events())
    return past.loss, past.validation, past.learning_rate, history.measure_speed(run.events()).tokens


def steps(run, kind):
    return [event["step"] for event in run.events() if event["event"] == kind]


@pytest.mark.parametrize("mode", MODES)
def test_killed_in_the_middle_it_ends_with_the_same_weights(mode, recipe, whole, tmp_path):
    run = prepared(recipe, tmp_path / "run", mode)
    process = command(run)
    wait_for(run, "step", 9 if mode == "lora" else 10, process)
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=False
    )
    for pid in (process.pid, *map(int, children.stdout.split())):
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert not run.model.exists()
    ended(run)
    (again,) = steps(run, "resumed")
    assert 8 <= again < 24
    assert weights(run) == weights(whole(mode))
    assert curves(run) == curves(whole(mode))


def test_a_signal_saves_the_step_in_flight(recipe, whole, tmp_path):
    run = prepared(recipe, tmp_path / "run", "full")
    process = command(run)
    wait_for(run, "step", 5, process)
    process.send_signal(signal.SIGTERM)
    code, error = said(process)
    assert code == 130, error
    step = steps(run, "checkpoint")[-1]
    assert f"checkpoint-{step} is complete; to resume: sftrun resume" in error
    ended(run)
    assert steps(run, "resumed") == [step]
    assert weights(run) == weights(whole("full"))


def test_a_full_disk_leaves_the_last_whole_checkpoint_and_names_it(recipe, whole, tmp_path):
    """A limit on the size of files stands for the disk: the weights fit, the optimizer's state does not."""
    run = prepared(recipe, tmp_path / "run", "full")

    def little():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_500_000, 2_500_000))

    code, error = said(command(run, preexec_fn=little))
    assert code == 1, error
    assert "the checkpoint of step 4 could not be written" in error
    assert "there is no checkpoint yet; make room, then resume the run" in " ".join(error.split())
    assert list(run.checkpoints.iterdir()) == []


def test_a_run_whose_training_had_ended_trains_no_step_more(recipe, whole, tmp_path):
    run = whole("lora")
    before, made = weights(run), len(steps(run, "step"))
    ended(run)
    assert weights(run) == before
    assert len(steps(run, "step")) == made


def test_the_last_and_the_best_checkpoints_are_kept(whole):
    from sftrun.training import checkpoints

    run = whole("full")
    losses = {event["step"]: event["loss"] for event in run.events() if event["event"] == "eval"}
    kept = {each.step for each in checkpoints.complete_checkpoints(run.checkpoints)}
    scored = {step: loss for step, loss in losses.items() if step in steps(run, "checkpoint")}
    assert kept == {20, 24} | {min(scored, key=scored.get)}


def test_a_run_that_another_backend_has_begun_is_refused(recipe, whole, tmp_path):
    run = prepared(recipe, tmp_path / "run", "full")
    run.add_facts("train", backend={"asked": "unsloth", "used": "hf", "reasons": ["two GPUs"]})
    run.event(sftrun.events.Step(step=1))
    with pytest.raises(sftrun.UserError, match="was trained with hf so far, and here unsloth would continue it"):
        ended(run)
