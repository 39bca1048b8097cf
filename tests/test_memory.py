"""Choosing a batch, and recovering from out-of-memory, on a backend that fails as on a small machine."""

import resource
import subprocess
import sys
from pathlib import Path

import frail_backend
import pytest
from conftest import talk
from frail_backend import frail

from sftrun import UserError, load, validate
from sftrun.errors import OutOfMemory
from sftrun.flow import prepare, resume, run
from sftrun.memory.search import Trial, search_largest

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parent.parent
ROWS = [talk(f"What comes after {number}?", str(number + 1) * (1 + number % 9)) for number in range(40)]
TRAIN = {
    "max_steps": 6,
    "learning_rate": 5e-3,
    "batch_size": 8,
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 2,
    "eval_strategy": "no",
}


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory):
    """Installs the backends `frail` and `mute` for this process and for workers."""
    with frail_backend.installed(tmp_path_factory.mktemp("site")):
        yield


@pytest.fixture
def recipe(write):
    """A recipe of full tuning in 8 rows a step, with keys of `train` and others replaced."""

    def made(train=(), **keys):
        return write(ROWS, tuning={"mode": "full"}, train={**TRAIN, **dict(train)}, **keys)

    return made


def events(folder, kind):
    return [event for event in folder.events() if event["event"] == kind]


def losses(folder):
    from sftrun.runs.history import build_history

    return build_history(folder.events()).loss


def said(file, *sets):
    return [problem.message for problem in validate(file, sets)]


def test_effective_batch_size_must_agree_with_the_other_keys(recipe):
    assert said(recipe({"effective_batch_size": 8})) == []
    (message,) = said(recipe({"effective_batch_size": 12}))
    assert message == "train.effective_batch_size is 12, but batch_size × grad_accum is 8 × 1 = 8"
    (message,) = said(recipe({"batch_size": "auto"}))
    assert "needs train.effective_batch_size" in message


def test_grad_accum_of_a_base_recipe_is_no_mistake_if_the_batch_is_chosen(recipe, tmp_path):
    recipe({"grad_accum": 2})
    above = tmp_path / "above.yaml"
    above.write_text("extends: recipe.yaml\ntrain: {batch_size: auto, effective_batch_size: 16}\n")
    assert load(above).train.grad_accum == 1
    (message,) = said(above, "train.grad_accum=4")
    assert message == "train.grad_accum has no effect with train.batch_size auto, which sets it"


def test_a_backend_without_an_estimate_needs_a_fixed_batch(recipe):
    (problem,) = validate(recipe({"batch_size": "auto", "effective_batch_size": 8}, backend="mute"))
    assert "a backend that estimates memory, and the backend mute does not" in problem.message
    assert "plan --probe" in problem.hint


GB = 10**9
EXPECTED = {size: size * GB for size in (1, 2, 4, 8, 16, 32)}


@pytest.mark.parametrize(
    ("takes", "free", "tried"),
    [
        (lambda size: size * GB, 10 * GB, [8]),  # as estimated
        (lambda size: size * GB // 2, 10 * GB, [8, 16]),  # half of that
        (lambda size: size * GB * 2, 10 * GB, [8, 4]),  # twice that
        (lambda size: size * GB * 2, 19 * GB, [16, 8]),
        (lambda size: size * GB if size < 8 else None, 30 * GB, [16, 8, 4]),  # a limit that nobody has told of
        (lambda size: None, 30 * GB, [16, 8, 4, 2, 1]),
        (lambda size: size * 100 * GB, 30 * GB, [16, 1]),
    ],
)
def test_the_search_starts_at_the_estimate_and_is_corrected_by_measurements(takes, free, tried):
    seen = []

    def measure(size):
        seen.append(size)
        return None if takes(size) is None else Trial(takes(size), free)

    found = search_largest(EXPECTED, free, measure)
    assert seen == tried
    fitting = [size for size in EXPECTED if takes(size) is not None and takes(size) <= 0.9 * free]
    assert (found[0] if found else None) == max(fitting, default=None)


@pytest.mark.slow
def test_smaller_batches_give_the_same_curve(recipe, tmp_path):
    """Memory runs out in step 3 with 8 rows; training resumes from step 2 with 4 rows accumulated twice."""
    whole = run(recipe(), out=tmp_path / "whole")
    shrunk = run(recipe({"on_oom": "shrink"}, backend=frail(rows=4)), out=tmp_path / "shrunk")
    (event,) = events(shrunk, "batch_shrunk")
    assert (event["batch_size"], event["grad_accum"], event["during"]) == (4, 2, "training")
    assert [each["step"] for each in events(shrunk, "resumed")] == [2]
    assert [step for step, _ in losses(shrunk)] == [1, 2, 3, 4, 5, 6]
    for (_, one), (_, other) in zip(losses(whole), losses(shrunk), strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    batch = shrunk.facts("train")["batch"]
    assert batch["asked"]["batch_size"] == 8
    assert (batch["batch_size"], batch["grad_accum"]) == (4, 2)
    assert load(shrunk.path / "resolved.yaml").train.batch_size == 4
    assert "Memory ran out" in (shrunk.path / "report.html").read_text()
    again = run(tmp_path / "recipe.yaml", out=shrunk.path, resume=True)  # it asks for what it began with
    assert load(again.path / "resolved.yaml").train.batch_size == 4


def test_out_of_memory_names_the_exact_change(recipe, tmp_path):
    with pytest.raises(UserError) as raised:
        run(recipe(backend=frail(rows=4)), out=tmp_path / "a run")
    (problem,) = raised.value.problems
    assert problem.message == "out of memory: CUDA out of memory. Tried to allocate 2.00 GiB."
    command = f"sftrun resume '{tmp_path / 'a run'}' --set train.batch_size=4 --set train.grad_accum=2"
    change = "set train.batch_size: 4 and train.grad_accum: 2 (the same 8 rows a step)"
    assert problem.hint == f"{change}: {command}; train.on_oom: shrink does so by itself"


def test_with_one_row_at_a_time_other_changes_are_suggested_in_order(recipe, tmp_path):
    from sftrun.memory import recover

    folder = prepare(recipe(), out=tmp_path / "run")
    one = load(tmp_path / "recipe.yaml", ["train.batch_size=1", "train.grad_accum=8"])
    first, shorter, lora, *qlora = recover.suggest_other_changes(one, folder, folder).split("; or ")
    assert first.startswith("set train.gradient_checkpointing: true (the same training, slower): sftrun resume")
    length = "in a new run set model.max_seq_len: 32 (12 of 40 rows are longer, and would be left out)"
    assert shorter == length  # a row in twenty is as long as the longest: half of that
    assert lora == "in a new run set tuning.mode: lora"
    assert all(each == "in a new run set tuning.mode: qlora and backend: bnb" for each in qlora)


@pytest.mark.parametrize(
    ("batch", "accum", "smaller"), [(8, 1, (4, 2)), (6, 1, (3, 2)), (5, 2, (2, 5)), (3, 1, (1, 3)), (1, 8, None)]
)
def test_a_smaller_batch_divides_the_rows_of_a_step(recipe, batch, accum, smaller):
    from sftrun.memory import recover

    given = load(recipe({"batch_size": batch, "grad_accum": accum}))
    sets = recover.shrink_batch(given, validating=False)
    assert (sets and tuple(sets.values())) == smaller


@pytest.mark.slow
def test_a_plan_shows_what_auto_would_choose(recipe, sftrun):
    result = sftrun("plan", recipe({"batch_size": "auto", "effective_batch_size": 8}), "--no-data")
    assert result.code == 0, result.err
    assert "train.batch_size auto: chose batch_size 8 and grad_accum 1 (estimated" in result.err


def test_a_plan_without_an_estimate_asks_for_a_probe(recipe, sftrun):
    result = sftrun("plan", recipe(backend="mute"))
    assert result.code == 1
    assert "the backend mute cannot estimate memory" in result.err
    assert "add --probe" in result.err


@pytest.mark.slow
def test_a_probe_needs_no_estimate(recipe, sftrun):
    result = sftrun("plan", recipe(backend="mute"), "--probe")
    assert result.code == 0, result.err
    assert "fits: " in result.err
    assert "measured" in result.err


@pytest.mark.slow
def test_a_killed_worker_resumes_with_fewer_rows_down_to_one(recipe, tmp_path, monkeypatch):
    counter = tmp_path / "vmstat"
    counter.write_text("oom_kill 0")
    monkeypatch.setattr("sftrun.launch.failures.OOM_KILL_FILES", (counter,))
    monkeypatch.setenv("KERNEL_COUNTER", str(counter))
    file = recipe({"on_oom": "shrink", "batch_size": 4}, backend=frail(rows=0, how="killed"))
    with pytest.raises(UserError) as raised:
        run(file, out=tmp_path / "run")
    (problem,) = raised.value.problems
    assert problem.message == "out of memory: the system killed the worker"
    assert "gradient_checkpointing: true" in problem.hint
    state = load(tmp_path / "run" / "resolved.yaml").train
    assert (state.batch_size, state.grad_accum) == (1, 4)


@pytest.mark.slow
def test_two_processes_shrink_together_and_resume_from_their_checkpoint(recipe, tmp_path):
    keys = {"backend": frail(rows=2), "launch": {"processes": 2}}
    folder = run(recipe({"on_oom": "shrink", "batch_size": 4}, **keys), out=tmp_path / "run")
    (event,) = events(folder, "batch_shrunk")
    assert (event["batch_size"], event["grad_accum"]) == (2, 2)
    assert [each["step"] for each in events(folder, "resumed")] == [2]
    assert [step for step, _ in losses(folder)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_an_evaluation_that_takes_too_much_memory_shrinks(recipe, tmp_path):
    train = {"on_oom": "shrink", "batch_size": 2, "eval_strategy": "steps", "eval_steps": 3, "eval_batch_size": 8}
    keys = {"backend": frail(rows=4), "source_options": {"val_share": 0.2}}
    folder = run(recipe(train, **keys), out=tmp_path / "run")
    (event,) = events(folder, "batch_shrunk")
    assert (event["during"], event["eval_batch_size"], event["batch_size"]) == ("evaluation", 4, 2)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_every_process_of_a_machine_takes_part_in_choosing_a_batch(recipe, tmp_path, strategy):
    launch = {"processes": 2, "strategy": strategy}
    file = recipe({"batch_size": "auto", "effective_batch_size": 8, "max_steps": 2}, launch=launch)
    folder = run(file, out=tmp_path / "run")
    assert [(each["batch_size"], each["processes"], each["fits"]) for each in events(folder, "batch_tried")] == [
        (4, 2, True)
    ]
    batch = folder.facts("train")["batch"]
    assert (batch["batch_size"], batch["grad_accum"]) == (4, 1)


@pytest.mark.slow
def test_a_batch_is_chosen_once(recipe, tmp_path):
    file = recipe({"batch_size": "auto", "effective_batch_size": 8}, backend=frail(rows=2, step=1))
    folder = run(file, out=tmp_path / "run")
    assert [(each["batch_size"], each["fits"]) for each in events(folder, "batch_tried")] == [
        (8, False),
        (4, False),
        (2, True),
    ]
    (sized,) = events(folder, "batch_chosen")
    assert (sized["batch_size"], sized["grad_accum"], sized["margin"]) == (2, 4, 0.1)
    assert sized["peak"] < sized["room"]
    assert folder.facts("train")["batch"]["asked"]["batch_size"] == "auto"
    assert not (folder.path / ".size").exists()
    folder.mark_undone("train", "report")
    run(file, out=folder.path, resume=True)
    resume(folder.path)
    assert len(events(folder, "batch_chosen")) == 1
    assert load(folder.path / "resolved.yaml").train.batch_size == 2


@pytest.mark.slow
def test_if_nothing_fits_nothing_is_trained_and_the_run_can_be_resumed(recipe, tmp_path):
    file = recipe({"batch_size": "auto", "effective_batch_size": 2}, backend=frail(rows=0, step=1))
    with pytest.raises(UserError, match="not even one row at a time") as raised:
        run(file, out=tmp_path / "run")
    assert "gradient_checkpointing: true" in str(raised.value)
    assert load(tmp_path / "run" / "resolved.yaml").train.batch_size == "auto"
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts what is allocated on Linux alone")
def test_fewer_rows_fit_a_real_memory_limit(write, tmp_path):
    """Workers inherit the limit: 64 rows of 250 tokens exceed it, fewer rows do not."""
    rows = [talk("Say it.", "xyz"[number % 3] * 230) for number in range(64)]
    train = {**TRAIN, "max_steps": 2, "batch_size": 64, "on_oom": "shrink"}
    file = write(rows, tuning={"mode": "full"}, train=train, model={"max_seq_len": 512})
    limit = 1_900_000_000
    done = subprocess.run(
        [sys.executable, "-m", "sftrun", file, "--out", tmp_path / "run"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "out of memory; trying again with train.batch_size" in done.stderr
    settled = load(tmp_path / "run" / "resolved.yaml").train
    assert settled.batch_size < 64
    assert settled.batch_size * settled.grad_accum == 64


def test_running_out_of_memory_is_an_error_that_a_user_can_fix():
    assert issubclass(OutOfMemory, UserError)
