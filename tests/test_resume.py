"""A run that is stopped at any moment and resumed has the same weights as a run without a stop, byte for byte."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import talk, wait_for

from sftrun import UserError
from sftrun.flow import STAGES
from sftrun.runs import history
from sftrun.runs.directory import RunDir

pytestmark = [pytest.mark.slow, pytest.mark.older, pytest.mark.timeout(300)]

ROWS = [talk(f"What comes after {number}?", str(number + 1) * (1 + number % 7)) for number in range(72)]
DATA = {"train": ROWS[:56], "val": ROWS[56:]}
TRAIN = {
    "epochs": 3,
    "learning_rate": 5e-3,
    "batch_size": 4,
    "logging_steps": 3,
    "save_strategy": "steps",
    "save_steps": 4,
    "eval_strategy": "steps",
    "eval_steps": 8,
}
LORA = ["tuning={mode: lora, lora: {r: 4, dropout: 0.1}}"]
EPOCHS = ["train.eval_strategy=epoch", "train.eval_steps=null"]
KINDS = {
    "full-by-length": [
        "train.group_by_length=true",
        "train.grad_accum=2",
        "train.save_steps=3",
        "train.optimizer=adafactor",
    ],
    "lora-packed": [*LORA, "packing={strategy: best-fit}", "train.epochs=8", "train.batch_size=2"],
    "lora-with-loaders": [*LORA, *EPOCHS, "train.dataloader_workers=2", "train.group_by_length=false"],
}


class Killed(BaseException):
    """The end of an attempt in this process; it leaves on the disk what a kill between two writes leaves."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    for split, rows in DATA.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {
        "model": {"name": "sftrun/tiny", "max_seq_len": 96},
        "source": {"use": "jsonl", "with": {"path": "."}},
        "tuning": {"mode": "full"},
        "train": TRAIN,
    }
    (folder / "recipe.yaml").write_text(json.dumps(keys))
    return folder


def attempt(run, die=lambda event: False):
    """Trains in this process, until the end or until an event for which `die` is true."""
    from sftrun.runs import session
    from sftrun.runs.recorder import Recorder
    from sftrun.stages.train import train_in_worker

    recorder = Recorder(run, lambda event: None)

    def emit(event):
        recorder(event)
        if die(event):
            raise Killed

    begun = any(event["event"] == "step" for event in run.events())
    try:
        with session.trackers(run.recipe(), recorder, resumed=begun):
            train_in_worker(run.recipe(), run, emit)
    except Killed:
        return False
    return True


def prepared(folder, name, sets=()):
    from sftrun.flow import prepare

    return prepare(folder / "recipe.yaml", sets, folder / name)


def weights(run):
    return next(run.model.glob("*.safetensors")).read_bytes()


def at(kind, *steps):
    """Returns a condition that is true at the given steps, once each."""
    left = list(steps)

    def die(event):
        if left and event["event"] == kind and event["step"] >= left[0]:
            left.pop(0)
            return True
        return False

    return die


def curves(run):
    past = history.build_history(run.events())
    return past.loss, past.validation, past.learning_rate


def points(run):
    """What TensorBoard shows: the losses by step, those it is told to hide left out."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = EventAccumulator(str(run.tensorboard)).Reload()
    return {tag: [(each.step, each.value) for each in seen.Scalars(tag)] for tag in ("train/loss", "eval/loss")}


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_equals_that_of_a_run_without_a_stop(folder, kind):
    whole, stopped = (prepared(folder, f"{kind}-{name}", KINDS[kind]) for name in ("whole", "stopped"))
    assert attempt(whole)
    # before any checkpoint, in the middle of an epoch, and right after an evaluation
    for die in (at("step", 3), at("step", 6), at("eval", 14)):
        assert not attempt(stopped, die)
    assert attempt(stopped)
    assert weights(stopped) == weights(whole)
    assert curves(stopped) == curves(whole)
    assert points(stopped) == points(whole)
    assert history.measure_speed(stopped.events()).tokens == history.measure_speed(whole.events()).tokens


def test_a_run_that_was_killed_before_its_model_was_written_trains_no_step_more(folder):
    run = prepared(folder, "at-the-end")
    assert not attempt(run, at("checkpoint", 42))
    assert attempt(run)
    assert [event["step"] for event in run.events() if event["event"] == "resumed"] == [42]
    assert max(event["step"] for event in run.events() if event["event"] == "step") == 42
    again = prepared(folder, "never-stopped")
    attempt(again)
    assert weights(run) == weights(again)


def test_training_stops_when_the_validation_loss_no_longer_falls_and_keeps_the_best(folder):
    sets = ["train.early_stopping={patience: 2}", "train.learning_rate=0.02", "train.epochs=40", "train.eval_steps=4"]
    sets += ["train.save_strategy=epoch", "train.save_steps=null", "train.save_total_limit=1"]
    whole, stopped = prepared(folder, "early-whole", sets), prepared(folder, "early-stopped", sets)
    assert attempt(whole)
    (early,) = [event for event in whole.events() if event["event"] == "stopped_early"]
    losses = dict(history.build_history(whole.events()).validation)
    assert losses[early["best_step"]] == min(losses.values()) == early["best_loss"]
    assert early["step"] == max(losses) == early["best_step"] + 8
    best = whole.checkpoints / f"checkpoint-{early['best_step']}" / "model.safetensors"
    last = whole.checkpoints / f"checkpoint-{early['step']}" / "model.safetensors"
    assert weights(whole) == best.read_bytes() != last.read_bytes()

    assert not attempt(stopped, at("eval", early["best_step"] + 4))  # patience goes on from where it was
    assert not attempt(stopped, at("checkpoint", early["step"]))
    assert attempt(stopped)
    assert weights(stopped) == weights(whole)


def test_a_threshold_stops_earlier_and_the_last_model_can_be_kept(folder):
    sets = ["train.early_stopping={patience: 1, threshold: 9}", "train.keep_best=false"]
    run = prepared(folder, "threshold", sets)
    attempt(run)
    (early,) = [event for event in run.events() if event["event"] == "stopped_early"]
    assert early["step"] == 16
    assert weights(run) == (run.checkpoints / "checkpoint-16/model.safetensors").read_bytes()
    assert not [event for event in run.events() if event["event"] == "best"]


def test_the_best_is_kept_without_early_stopping(folder):
    run = prepared(
        folder,
        "best",
        ["train.keep_best=true", "train.learning_rate=0.05", "train.scheduler=constant", "train.epochs=6"],
    )
    attempt(run)
    (best,) = [event for event in run.events() if event["event"] == "best"]
    losses = dict(history.build_history(run.events()).validation)
    assert best["step"] == min(losses, key=losses.get) < max(losses)
    assert weights(run) == (run.checkpoints / f"checkpoint-{best['step']}/model.safetensors").read_bytes()


@pytest.mark.parametrize("left", [True, False])
def test_a_damaged_best_checkpoint_is_left_out_with_a_warning(folder, left):
    sets = ["train.keep_best=true", "train.learning_rate=0.02", "train.epochs=8", "train.save_total_limit=null"]
    run = prepared(folder, f"spoilt-{left}", sets)
    assert not attempt(run, at("checkpoint", 84))  # without a validation loss of its own
    losses = dict(history.build_history(run.events()).validation)
    first, *others = sorted(map(int, losses), key=losses.get)
    (run.checkpoints / f"checkpoint-{first}/model.safetensors").unlink()
    for step in [] if left else others:
        shutil.rmtree(run.checkpoints / f"checkpoint-{step}")
    assert attempt(run)
    (said,) = [
        event["message"] for event in run.events() if event["event"] == "warning" and "lowest" in event["message"]
    ]
    assert (f"checkpoint-{others[0]} is the best one left" if left else "the next evaluation takes its place") in said
    (best,) = [event for event in run.events() if event["event"] == "best"]
    assert best["step"] == others[0] if left else best["step"] > 84
    assert weights(run) == (run.checkpoints / f"checkpoint-{best['step']}/model.safetensors").read_bytes()


def test_weights_that_are_not_finite_are_not_saved_and_the_last_good_checkpoint_is_named(folder):
    from safetensors.torch import load_file

    sets = ["train.learning_rate=1e30", "train.max_grad_norm=0", "train.save_steps=1", "train.save_total_limit=null"]
    run = prepared(
        folder, "diverged", [*sets, "train.logging_steps=20", "train.eval_strategy=no", "train.eval_steps=null"]
    )
    with pytest.raises(
        UserError, match=r"not finite at step \d+; the last complete checkpoint is .*lower train\.learning_rate"
    ) as error:
        attempt(run)
    saved = sorted(run.checkpoints.iterdir(), key=lambda path: int(path.name.split("-")[1]))
    assert f"{saved[-1]};" in str(error.value)
    for checkpoint in saved:
        assert all(bool(each.isfinite().all()) for each in load_file(checkpoint / "model.safetensors").values())


# From here on, real processes and real signals.


@pytest.fixture(scope="module")
def reference(folder):
    run = prepared(folder, "reference")
    attempt(run)
    return run


def command(folder, *words, **settings):
    return subprocess.Popen(
        [sys.executable, "-m", "sftrun", *map(str, words)], cwd=folder, stderr=subprocess.PIPE, text=True, **settings
    )


def said(process):
    error = process.communicate(timeout=120)[1]
    return process.returncode, error


def children(pid):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(each) for each in found.stdout.split()]


def reached(run, step):
    return lambda: any(event["event"] == "step" and event["step"] >= step for event in run.events())


@pytest.fixture(scope="module")
def killed(folder):
    """A run whose worker was killed while it wrote a checkpoint, and whose command was killed later on."""
    run = RunDir(folder / "killed")
    first = command(folder, "recipe.yaml", "--out", "killed")
    wait_for((run.checkpoints / "checkpoint-8").exists)
    wait_for((run.checkpoints / ".saving").exists, pause=0.0005)  # seconds: a save is short
    (worker,) = children(first.pid)
    os.kill(worker, signal.SIGKILL)
    code, error = said(first)
    assert (code, "the worker was killed" in error) == (1, True), error
    assert "resume from the last checkpoint: sftrun resume killed" in error

    second = command(folder, "resume", "killed")
    wait_for(reached(run, 18))
    (worker,) = children(second.pid)
    second.kill()
    second.wait()
    wait_for(lambda: not Path(f"/proc/{worker}").exists())  # it does not outlive its parent
    return run


def test_killed_in_the_middle_of_a_save_and_again_by_its_parent_it_ends_the_same(folder, killed, reference):
    said_at_last = said(command(folder, "recipe.yaml", "--resume", "--out", "killed"))
    assert said_at_last[0] == 0, said_at_last[1]
    assert "prepare\n  already done" in said_at_last[1]
    assert "resuming from step" in said_at_last[1]
    assert weights(killed) == weights(reference)
    assert curves(killed) == curves(reference)
    assert {name: each["status"] for name, each in killed.read_json("state.json").items()} == {
        "prepare": "done",
        "train": "done",
        "report": "done",
    }


def test_a_stage_that_is_done_does_not_run_again(folder, killed, sftrun):
    before = weights(killed)
    result = sftrun(folder / "recipe.yaml", "--resume", "--out", killed.path)
    assert result.code == 0, result.err
    assert result.err.count("already done") == 3
    assert weights(killed) == before


def test_a_recipe_that_would_train_other_weights_is_refused_with_every_difference(folder, killed, sftrun):
    sets = ["--set", "train.learning_rate=0.001", "--set", "seed=3", "--set", "train.save_steps=7"]
    result = sftrun(folder / "recipe.yaml", *sets, "--resume", "--out", killed.path)
    assert result.code == 1
    assert "train.learning_rate is 0.001, but the run in killed has trained with 0.005" in result.err
    assert "seed is 3, but the run in killed has trained with 0" in result.err
    assert "save_steps is" not in result.err


def test_the_batch_may_be_split_differently_with_a_warning(folder, killed):
    from sftrun import load
    from sftrun.runs import resume

    sets = ["train.batch_size=2", "train.grad_accum=2"]
    (warning,) = resume.reconcile(load(folder / "recipe.yaml", sets), killed, 1, STAGES)
    assert warning.startswith("train.batch_size, train.grad_accum changed")
    with pytest.raises(UserError, match=r"train\.batch_size is 2"):
        resume.reconcile(load(folder / "recipe.yaml", sets[:1]), killed, 1, STAGES)


def test_an_adapter_resumes_only_on_the_base_that_it_began_with(folder):
    from sftrun import tiny

    base = folder / "base"
    base.mkdir()
    tiny.save(base, seed=1)
    kept = (base / "model.safetensors").read_bytes()
    run = prepared(folder, "on-a-base", [*LORA, f"model.name={base}", "train.max_steps=8"])
    assert not attempt(run, at("step", 6))
    tiny.save(base, seed=2)
    with pytest.raises(UserError, match="have changed since the run began"):
        attempt(run)
    (base / "model.safetensors").write_bytes(kept)
    assert attempt(run)
    assert [event["step"] for event in run.events() if event["event"] == "resumed"] == [4]


def test_other_samples_than_before_are_refused(folder, killed):
    from sftrun.runs.recorder import Recorder
    from sftrun.runs.stage import StageWork
    from sftrun.stages.train import train

    file = killed.prepared / "val.arrow"
    kept = file.read_bytes()
    file.write_bytes(kept[:-1] + b"x")
    try:
        with pytest.raises(UserError, match=r"val\.arrow in .* is not what the run has trained on so far"):
            train(StageWork(killed, Recorder(killed, print)))
    finally:
        file.write_bytes(kept)


def test_a_signal_saves_the_step_in_flight_and_says_how_to_resume(folder, reference):
    run = RunDir(folder / "stopped")
    for words, number in (
        (["recipe.yaml", "--out", "stopped"], signal.SIGTERM),
        (["resume", "stopped"], signal.SIGINT),
    ):
        process = command(folder, *words)
        wait_for(reached(run, 9 if number == signal.SIGTERM else 21))
        process.send_signal(number)
        code, error = said(process)
        assert code == 130, error
        step = [event["step"] for event in run.events() if event["event"] == "checkpoint"][-1]
        kept = f"stopped/checkpoints/checkpoint-{step} is complete"
        assert f"interrupted; {kept}; to resume: sftrun resume stopped" in error
        assert run.read_json("state.json")["train"]["status"] == "interrupted"
    assert step < 42
    assert attempt(run)
    assert weights(run) == weights(reference)
    assert curves(run) == curves(reference)


def test_after_training_a_signal_names_the_stages_that_are_left(folder):
    run = RunDir(folder / "evaluating")
    sets = ["--set", "train.max_steps=4", "--set", "evaluators=[loss]", "--set", "exporters=[merged]", "--set", *LORA]
    process = command(folder, "recipe.yaml", "--out", "evaluating", *sets)
    wait_for(lambda: run.read_json("state.json").get("evaluate"))
    process.send_signal(signal.SIGINT)
    code, error = said(process)
    assert code == 130, error
    left = "the model is trained; to continue with evaluate, export, report: sftrun resume evaluating"
    assert f"interrupted; {left}" in error


def test_a_full_disk_leaves_the_last_whole_checkpoint_and_names_it(folder, reference):
    """A limit on the size of files stands for the disk: the weights fit, the optimizer's state does not."""
    run = prepared(folder, "full-disk")
    run.stage("prepare", "done")
    assert not attempt(run, at("checkpoint", 8))

    def little():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_500_000, 2_500_000))

    code, error = said(command(folder, "resume", "full-disk", preexec_fn=little))
    assert code == 1, error
    assert "the checkpoint of step 12 could not be written" in error
    assert f"the last complete checkpoint is {run.checkpoints}/checkpoint-8; make room, then resume the run" in error
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["checkpoint-4", "checkpoint-8"]
    assert run.read_json("state.json")["train"]["status"] == "failed"
    assert attempt(run)
    assert weights(run) == weights(reference)


def test_two_processes_do_not_write_to_one_run(reference, monkeypatch):
    monkeypatch.setattr("sftrun.runs.directory.PATIENCE", 0.1)
    with reference.locked(), pytest.raises(UserError, match="another process is using"), reference.locked():
        pass


def test_a_lock_waits_for_processes_that_are_about_to_end(reference):
    holding = reference.locked()
    holding.__enter__()
    threading.Timer(0.3, holding.__exit__, (None, None, None)).start()
    with reference.locked():
        pass


def test_a_last_event_that_was_cut_short_is_removed(tmp_path):
    run = RunDir(tmp_path)
    run.event({"event": "step", "step": 1})
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"event": "ste')
    run.mend()
    run.event({"event": "step", "step": 2})
    assert [event["step"] for event in run.events()] == [1, 2]


def test_resume_finds_the_newest_run_of_the_recipe(tmp_path):
    from sftrun.runs import directory, resume

    for name in (
        "chat-20260101-000000",
        "chat-20260101-000000-2",
        "chat-20260101-000000-10",
        "chat-lora-20270101-000000",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lock.json").write_text("{}")
    (tmp_path / "chat-20280101-000000").mkdir()  # killed before it began
    assert directory.find_latest(Path("chat.yaml"), tmp_path).path.name == "chat-20260101-000000-10"
    assert directory.find_latest(Path("other.yaml"), tmp_path) is None
    assert resume.find_run(Path("chat.yaml"), tmp_path / "chat-20280101-000000") is None


def test_a_run_that_was_killed_before_it_began_begins_again(write, sftrun, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/resolved.yaml").touch()
    assert "train.jsonl:1" in sftrun(write(["{"]), "--resume", "--out", tmp_path / "out").err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/recipe.yaml").touch()
    assert "mine is not empty" in sftrun(write(["{"]), "--resume", "--out", tmp_path / "mine").err


def test_without_a_run_to_resume_a_new_one_starts(write, sftrun, tmp_path):
    result = sftrun(write(["{"]), "--resume", "--out", tmp_path / "new")
    assert "train.jsonl:1" in result.err
    assert (tmp_path / "new/lock.json").is_file()


def test_a_folder_without_a_run_cannot_be_resumed(sftrun, tmp_path):
    result = sftrun("resume", tmp_path)
    assert result.code == 1
    assert "is not a run directory" in result.err


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"early_stopping": {}, "eval_strategy": "no"}, "train.early_stopping needs the validation loss"),
        ({"keep_best": True, "eval_strategy": "no"}, "train.keep_best needs the validation loss"),
        ({"early_stopping": {}, "save_strategy": "no"}, "train.early_stopping needs checkpoints"),
        ({"keep_best": True, "save_strategy": "no"}, "train.keep_best needs checkpoints"),
        ({"early_stopping": {}, "keep_best": False, "save_strategy": "no"}, None),
        ({"early_stopping": None, "keep_best": None, "save_strategy": "no", "eval_strategy": "no"}, None),
    ],
)
def test_missing_settings_for_early_stopping_are_reported_before_anything_runs(write, sftrun, train, words):
    result = sftrun("validate", write(ROWS[:2], train=train))
    assert result.code == (0 if words is None else 1)
    assert words is None or words in result.err


def test_early_stopping_without_validation_rows_is_refused_before_training(write, sftrun, tmp_path):
    recipe = write(ROWS[:3], train={"early_stopping": {"patience": 1}})
    result = sftrun(recipe, "--out", tmp_path / "out")
    assert result.code == 1
    assert "the data have no validation rows" in result.err
    assert "recipe.yaml:" in result.err
