"""Stage 3, evaluate: the base and the tuned model, on the same held-out prompts."""

import gc
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from sftrun import files
from sftrun.errors import OutOfMemory
from sftrun.launch import failures, workers
from sftrun.recipe.model import Recipe
from sftrun.registry import Registry, current
from sftrun.runs.directory import RunDir
from sftrun.types import Emit, Evaluator, LossSums, Model, Prompt, Scores

Which = Literal["base", "tuned"]


def evaluate(run: RunDir, emit: Emit) -> None:
    """Fills `eval/`: scores.json, and samples.jsonl with the answers side by side."""
    try:
        workers.work("sftrun.stages.evaluate:evaluate_here", run, emit)
    except OutOfMemory as error:
        command = f"sftrun resume {files.shell_path(run.path)} --set train.eval_batch_size=1"
        hint = f"lower train.eval_batch_size ({command}), or the batch_size of evaluators that generate"
        said = error.problems[0].message
        raise OutOfMemory(said, hint=hint + failures.if_killed(said, run)) from error


def evaluate_here(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    """The same in this process."""
    registry = current()
    backend = registry.create("backend", recipe.backend)
    prompts = _prompts(run)
    scores: dict[Which, dict[str, Scores]] = {}
    for which in ("base", "tuned"):
        emit({"event": "evaluating", "which": which})
        model = Remembering(backend.load(recipe, run.path, which))
        scores[which] = {name: item.score(model, prompts) for name, item in _evaluators(recipe, registry).items()}
        del model
        gc.collect()  # the base model's memory is free before the tuned one is loaded
    _write(run, scores)


class Remembering:
    """A model that generates once for evaluators that ask the same."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.decode = model.decode
        self.answers: dict[tuple[int, tuple[int, ...]], list[int]] = {}

    def losses(self, split: str) -> LossSums | None:
        return self.model.losses(split)

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, batch_size: int) -> list[list[int]]:
        keys = [(max_new_tokens, tuple(prompt)) for prompt in prompts]
        new = list(dict.fromkeys(key for key in keys if key not in self.answers))
        made = self.model.generate([prompt for _, prompt in new], max_new_tokens, batch_size) if new else []
        self.answers.update(zip(new, made, strict=True))
        return [self.answers[key] for key in keys]


def _prompts(run: RunDir) -> dict[str, list[Prompt]]:
    decoder = msgspec.json.Decoder(Prompt)
    return {
        split: decoder.decode_lines((run.prepared / f"prompts-{split}.jsonl").read_bytes())
        for split in ("val", "test")
        if (run.prepared / f"prompts-{split}.jsonl").is_file()
    }


def _evaluators(recipe: Recipe, registry: Registry) -> dict[str, Evaluator]:
    named: dict[str, Evaluator] = {}
    for each in recipe.evaluators:
        use = each
        earlier = sum(name.split("#")[0] == use.use for name in named)
        named[f"{use.use}#{earlier + 1}" if earlier else use.use] = registry.create("evaluator", use)
    return named


def _write(run: RunDir, scores: dict[Which, dict[str, Scores]]) -> None:
    metrics = {which: {name: found.metrics for name, found in each.items()} for which, each in scores.items()}
    run.eval.mkdir(exist_ok=True)
    lines = b"".join(msgspec.json.encode(sample) + b"\n" for sample in _side_by_side(scores))
    run.write("eval/samples.jsonl", lines.decode())
    run.write_json("eval/scores.json", metrics)


def _side_by_side(scores: dict[Which, dict[str, Scores]]) -> list[dict[str, Any]]:
    """One object a prompt: what was asked, the reference, and both models' answers with their scores."""
    together = []
    for name, found in scores["tuned"].items():
        for base, tuned in zip(scores["base"][name].samples, found.samples, strict=True):
            shared = {key: tuned[key] for key in ("origin", "messages", "reference")}
            own = [{key: value for key, value in each.items() if key not in shared} for each in (base, tuned)]
            together.append({"evaluator": name, **shared, "base": own[0], "tuned": own[1]})
    return together
