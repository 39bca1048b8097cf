"""Stage 3, evaluate: scores the base and the tuned model on the same held-out prompts."""

import gc
import time
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from sftrun import events, files
from sftrun.errors import OutOfMemory
from sftrun.kinds import Backend, Emit, Evaluator, Loading, Model, Scoring
from sftrun.launch import failures, workers
from sftrun.recipe.model import Recipe
from sftrun.registry import Registry, current
from sftrun.runs.directory import RunDir
from sftrun.runs.stage import StageWork
from sftrun.types import Decoding, Measure, Prompt, Scores

Which = Literal["base", "tuned"]
REPORT_INTERVAL = 5.0  # seconds between two reports of progress
WHICH: tuple[Which, Which] = ("base", "tuned")


def evaluate(work: StageWork) -> None:
    """Writes `eval/scores.json`, and `eval/samples.jsonl` with the answers of both models, in a worker process."""
    run = work.run
    try:
        workers.run_in_worker("sftrun.stages.evaluate:evaluate_in_worker", run, work.emit)
    except OutOfMemory as error:
        command = f"sftrun resume {files.shell_path(run.path)} --set train.eval_batch_size=1"
        hint = f"lower train.eval_batch_size ({command}), or the batch_size of evaluators that generate"
        message = error.problems[0].message
        raise OutOfMemory(message, hint=hint + failures.suggest_resume_if_killed(message, run)) from error


def evaluate_in_worker(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    """Scores both models in this process, and writes `eval/`."""
    registry = current()
    backend: Backend = registry.create("backend", recipe.backend)
    prompts = _read_prompts(run)
    scores: dict[Which, dict[str, Scores]] = {}
    for which in WHICH:
        emit(events.Evaluating(which=which))
        model = CachedModel(backend.load(Loading(recipe=recipe, run=run, which=which)), which, emit)
        work = Scoring(model=model, prompts=prompts, recipe=recipe, run=run, emit=emit, which=which)
        scores[which] = {}
        for name, evaluator in _create_evaluators(recipe, registry).items():
            emit(events.Evaluating(which=which, evaluator=name))
            scores[which][name] = evaluator.score(work)
        del model, work
        gc.collect()  # the base model's memory is free before the tuned one is loaded
    _write_scores(run, scores)


class CachedModel:
    """A model that generates once for evaluators with the same prompts and decoding, and reports its progress."""

    def __init__(self, model: Model, which: Which, emit: Emit) -> None:
        self.model, self.which, self.emit = model, which, emit
        self.reported = time.monotonic()  # when the progress was last reported
        self.encode, self.decode = model.encode, model.decode
        self.loglikelihood, self.losses = model.loglikelihood, model.losses
        self.answers: dict[tuple[Decoding, tuple[int, ...]], list[int]] = {}

    def generate(self, prompts: Sequence[Sequence[int]], decoding: Decoding) -> list[list[int]]:
        """Returns one continuation per prompt; sampled ones are made anew."""
        if decoding.temperature > 0:
            return self.model.generate(prompts, decoding)
        keys = [(decoding, tuple(prompt)) for prompt in prompts]
        new = list(dict.fromkeys(key for key in keys if key not in self.answers))
        new.sort(key=lambda key: len(key[1]))  # little padding
        for start in range(0, len(new), decoding.batch_size):
            batch = new[start : start + decoding.batch_size]
            answers = self.model.generate([prompt for _, prompt in batch], decoding)
            self.answers.update(zip(batch, answers, strict=True))
            self._report(start + len(batch), len(new))
        return [self.answers[key] for key in keys]

    def _report(self, done: int, total: int) -> None:
        if done == total or time.monotonic() - self.reported > REPORT_INTERVAL:
            self.reported = time.monotonic()
            self.emit(events.Answered(which=self.which, done=done, total=total))


def _read_prompts(run: RunDir) -> dict[str, list[Prompt]]:
    decoder = msgspec.json.Decoder(Prompt)
    return {
        split: decoder.decode_lines((run.prepared / f"prompts-{split}.jsonl").read_bytes())
        for split in ("val", "test")
        if (run.prepared / f"prompts-{split}.jsonl").is_file()
    }


def _create_evaluators(recipe: Recipe, registry: Registry) -> dict[str, Evaluator]:
    named: dict[str, Evaluator] = {}
    for each in recipe.evaluators:
        use = each
        earlier = sum(name.split("#")[0] == use.use for name in named)
        named[f"{use.use}#{earlier + 1}" if earlier else use.use] = registry.create("evaluator", use)
    return named


def _write_scores(run: RunDir, scores: dict[Which, dict[str, Scores]]) -> None:
    """Writes samples.jsonl, then scores.json: values by model, evaluator and metric, and about each metric its
    direction.
    """
    values: dict[str, Any] = {
        which: {
            name: {metric: each.value if isinstance(each, Measure) else each for metric, each in found.metrics.items()}
            for name, found in by.items()
        }
        for which, by in scores.items()
    }
    about = {
        name: {metric: _about(each) for metric, each in found.metrics.items() if isinstance(each, Measure)}
        for name, found in scores["tuned"].items()
    }
    run.eval.mkdir(exist_ok=True)
    lines = b"".join(msgspec.json.encode(sample) + b"\n" for sample in _pair_samples(scores))
    run.write("eval/samples.jsonl", lines.decode())
    run.write_json("eval/scores.json", {**values, "metrics": about})


def _about(measure: Measure) -> dict[str, Any]:
    about: dict[str, Any] = msgspec.to_builtins(measure)
    del about["value"]
    return about


def _pair_samples(scores: dict[Which, dict[str, Scores]]) -> list[dict[str, Any]]:
    """Returns one object per prompt: the messages, the reference, and the answers of both models with their scores."""
    pairs = []
    for name, found in scores["tuned"].items():
        for base, tuned in zip(scores["base"][name].samples, found.samples, strict=True):
            shared = {key: tuned[key] for key in ("origin", "messages", "reference")}
            own = [{key: value for key, value in each.items() if key not in shared} for each in (base, tuned)]
            pairs.append({"evaluator": name, **shared, "base": own[0], "tuned": own[1]})
    return pairs
