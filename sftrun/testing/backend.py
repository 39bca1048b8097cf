"""Promises of a training backend, tried on a few rows with the embedded model."""

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sftrun import tiny
from sftrun.errors import Interrupted, UserError
from sftrun.events import Eval, Event, Resumed, Step
from sftrun.gpus import gpu_count
from sftrun.kinds import Backend, Model
from sftrun.options import Use, leaves
from sftrun.recipe.checks import BACKEND_PARTS
from sftrun.recipe.model import ModelOptions, Recipe
from sftrun.runs.directory import RunDir
from sftrun.testing.bench import Attempt, Bench, change_rows
from sftrun.testing.model import check_model, trained_likelihood

TAIL = 3  # tokens that are added to rows, and not trained
LEARN: dict[str, Any] = {
    "train.max_steps": 12,
    "train.batch_size": 4,
    "train.learning_rate": 5e-3,
    "train.scheduler": "constant",
    "train.warmup": 0,
    "train.logging_steps": 1,
    "train.precision": "fp32",
    "train.eval_strategy": "steps",
    "train.eval_steps": 6,
    "train.save_strategy": "steps",
    "train.save_steps": 4,
}
# Each step has all rows, so its loss does not depend on their order; a step of SGD is proportional to the gradient.
STEPS: dict[str, Any] = {
    "train.max_steps": 3,
    "train.optimizer": "sgd",
    "train.learning_rate": 0.1,
    "train.max_grad_norm": 0,
    "train.batch_size": 8,
    "train.grad_accum": 1,
}
SPLIT_STEPS = {
    "train.batch_size=2 and grad_accum=4": {"train.batch_size": 2, "train.grad_accum": 4},
    "train.batch_size=3 and grad_accum=3": {"train.batch_size": 3, "train.grad_accum": 3},
}
STOP = 5  # the step after which a run is stopped, between two checkpoints
ROUNDING = 1e-4  # relative error of a loss; sums in another order
STORED = 1e-3  # relative error of a loss; other kernels, and quantised weights
ON_GPU = 1e-3  # relative error of a loss; kernels that are not deterministic


def check_backend(backend: Backend, overrides: Sequence[str] = ()) -> None:
    """Raises AssertionError unless a backend trains as its kind promises; takes about a minute.

    The loss falls; the same seed gives the same loss; a token that is not trained has no effect; neither the split of a
    step into micro-batches nor packing changes the loss; a saved model is loaded as it was trained; SIGTERM leaves a
    checkpoint, and the resumed run ends like one that was never stopped. Promises about keys that the backend does not
    honour are left out. `overrides` (`tuning.mode=qlora`) apply to every training. It trains in this process, in its
    main thread.
    """
    _check_honours(backend)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(backend, overrides, Path(folder))
        learned = bench.trained(LEARN)
        _check_learning(bench, learned)
        _check_saved(bench, learned)
        _check_stopping(bench, learned)
        whole = bench.trained({**LEARN, **STEPS})
        _check_first_loss(bench, whole)
        _check_untrained(bench)
        for how, changes in SPLIT_STEPS.items():
            _check_same_steps(bench, whole, {**LEARN, **STEPS, **changes}, f"split into {how}")
        if "packing.strategy" in bench.honours:
            packed = {**LEARN, **STEPS, "packing.strategy": "best-fit"}
            _check_same_steps(bench, whole, packed, "packed (packing.strategy=best-fit)")


def _check_honours(backend: Backend) -> None:
    recipe = Recipe(model=ModelOptions(name=tiny.NAME), source=Use(use="jsonl"))
    known = {f"{part}.{key}" for part in BACKEND_PARTS for key, _ in leaves(getattr(recipe, part))}
    honours = getattr(backend, "honours", None)
    assert isinstance(honours, frozenset | set), f"honours must be a frozenset of recipe keys, not {honours!r}"
    unknown = sorted(honours - known)
    assert not unknown, f"honours names {', '.join(unknown)}, which is no recipe key"


def _check_learning(bench: Bench, learned: Attempt) -> None:
    losses = list(learned.losses().values())
    assert losses, "train() emits no Step with a loss"
    assert list(learned.losses()) == sorted(learned.losses()), "the steps of events do not rise"
    assert all(map(math.isfinite, losses)), f"a loss is not finite: {losses}"
    part = max(len(losses) // 4, 1)
    first, last = sum(losses[:part]) / part, sum(losses[-part:]) / part
    assert last < first, f"the loss does not fall: {first:.4f} in the first steps, {last:.4f} in the last"
    counts = [event.tokens for event in learned.of(Step) if event.tokens is not None]
    assert counts == sorted(counts), "the tokens of Step events do not rise"


def _check_saved(bench: Bench, learned: Attempt) -> None:
    from sftrun.data import load_tokenizer

    run = learned.run
    assert run.model.is_dir(), "train() left no model in work.run.model"
    try:
        template = load_tokenizer(ModelOptions(name=str(run.model))).template
    except UserError as error:
        raise AssertionError(f"the tokenizer next to the model cannot be loaded: {error}") from error
    assert template is not None, "there is no chat template next to the model"
    tuned = bench.load(run)
    check_model(tuned, run)
    _check_tuned(bench, learned, tuned)
    one, other = (trained_likelihood(model, run, "train") for model in (tuned, bench.load(run)))
    _check_same(one[1], other[1], "a model that is loaded twice has two log-likelihoods")


def _check_tuned(bench: Bench, learned: Attempt, tuned: Model) -> None:
    tokens, likelihood = trained_likelihood(tuned, learned.run, "train")
    _, base = trained_likelihood(bench.load(learned.run, "base"), learned.run, "train")
    what = f"after training the loaded model has a loss of {-likelihood / tokens:.4f}, before it {-base / tokens:.4f}"
    assert likelihood > base, f"{what}: it is not the one that was trained"
    evals, steps = learned.of(Eval), learned.of(Step)
    if evals and evals[-1].step == steps[-1].step:
        sums = tuned.losses("val")
        loaded = sums.loss / sums.tokens if sums else math.nan
        same = math.isclose(loaded, evals[-1].loss, rel_tol=STORED)
        message = f"the validation loss was {evals[-1].loss:.6f} in the last step, and is {loaded:.6f} after loading"
        assert same, f"{message}: what is saved is not what was trained"


def _check_stopping(bench: Bench, learned: Attempt) -> None:
    """Raises AssertionError unless another run of the same seed has the same losses, even if it is stopped."""
    run = bench.prepared(LEARN)
    if {"train.save_strategy", "train.save_steps"} <= bench.honours:
        _check_interrupted(bench, run, learned)
        _check_resumed(bench, run, learned)
    else:
        _check_losses(bench.train(run).losses(), learned.losses(), "the same seed gives other losses")


def _check_interrupted(bench: Bench, run: RunDir, learned: Attempt) -> None:
    """Raises AssertionError unless SIGTERM stops a training, with a checkpoint of the step in flight."""
    sent: list[int] = []

    def stop(event: Event) -> bool:
        if isinstance(event, Step) and event.step >= STOP and not sent:
            sent.append(event.step)
            return True
        return False

    try:
        bench.train(run, stop)
    except Interrupted:
        pass
    else:
        raise AssertionError("train() does not stop on SIGTERM: it must save, and raise sftrun.errors.Interrupted")
    before = {event["step"]: event["loss"] for event in run.events() if event["event"] == "step"}
    expected = {step: loss for step, loss in learned.losses().items() if step in before}
    _check_losses(before, expected, "the same seed gives other losses")
    saved = _saved_step(run)
    assert saved >= sent[0], f"the last checkpoint is of step {saved}, and SIGTERM came in step {sent[0]}"


def _check_resumed(bench: Bench, run: RunDir, learned: Attempt) -> None:
    """Raises AssertionError unless a stopped run continues from its checkpoint as if it had not been stopped."""
    saved = _saved_step(run)
    resumed = bench.train(run)
    kinds = [type(event) for event in resumed.events if isinstance(event, Resumed | Step)]
    assert kinds[:1] == [Resumed], "a run that continues must emit Resumed before its first Step"
    start = resumed.of(Resumed)[0].step
    assert start == saved, f"the run continues after step {start}, and its last checkpoint is of {saved}"
    after = {step: loss for step, loss in learned.losses().items() if step > start}
    _check_losses(resumed.losses(), after, "a resumed run has other losses than one that was never stopped")
    one, other = (trained_likelihood(bench.load(each), each, "train")[1] for each in (run, learned.run))
    _check_same(one, other, "a resumed run ends with another model than one that was never stopped")


def _saved_step(run: RunDir) -> int:
    """Returns the step of the last checkpoint that a run has announced."""
    saved: list[int] = [event["step"] for event in run.events() if event["event"] == "checkpoint"]
    assert saved, "train() emits no Checkpoint when SIGTERM stops it"
    return max(saved)


def _check_first_loss(bench: Bench, whole: Attempt) -> None:
    """Raises AssertionError unless the first loss is the loss of the trained tokens under the base model."""
    tokens, likelihood = trained_likelihood(bench.load(whole.run, "base"), whole.run, "train")
    first, expected = next(iter(whole.losses().values())), -likelihood / tokens
    message = f"the loss of the first step is {first:.6f}, but the loss of its trained tokens is {expected:.6f}"
    assert math.isclose(first, expected, rel_tol=STORED), message


def _check_untrained(bench: Bench) -> None:
    """Raises AssertionError unless tokens that are not trained, and that no trained one follows, have no effect."""
    from sftrun.data import load_tokenizer

    tokenizer = load_tokenizer(ModelOptions(name=tiny.NAME))
    attempts = []
    for text in ("a", "b"):
        run = bench.prepared({**LEARN, **STEPS})
        _append(run, [tokenizer.encode([text])[0].ids[0]] * TAIL)
        attempts.append(bench.train(run))
    why = "tokens that are not trained change the loss: their gradient must be exactly zero"
    _check_losses(attempts[0].losses(), attempts[1].losses(), why)


def _append(run: RunDir, ids: Sequence[int]) -> None:
    """Appends tokens that are not trained to every prepared training row."""
    from sftrun.data import IGNORED

    def change(row: dict[str, Any]) -> None:
        row["input_ids"] += ids
        row["labels"] += [IGNORED] * len(ids)

    change_rows(run, change)


def _check_same_steps(bench: Bench, whole: Attempt, settings: Mapping[str, Any], how: str) -> None:
    losses = bench.trained(settings).losses()
    _check_losses(losses, whole.losses(), f"a step of the same rows has another loss if it is {how}", ROUNDING)


def _check_losses(
    losses: Mapping[int, float], expected: Mapping[int, float], message: str, tolerance: float = 0.0
) -> None:
    difference = f"{message}: {_format_losses(losses)} instead of {_format_losses(expected)}"
    assert losses.keys() == expected.keys(), difference
    for step, loss in losses.items():
        _check_same(loss, expected[step], difference, tolerance)


def _check_same(one: float, other: float, message: str, tolerance: float = 0.0) -> None:
    """Raises AssertionError unless two numbers are the same: exactly on a CPU, if no tolerance is given."""
    close = max(tolerance, ON_GPU if gpu_count() else 0.0)
    assert math.isclose(one, other, rel_tol=close), f"{message} ({one} and {other})"


def _format_losses(losses: Mapping[int, float]) -> str:
    return ", ".join(f"step {step}: {loss:.6f}" for step, loss in losses.items()) or "no losses"
