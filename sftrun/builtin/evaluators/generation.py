"""Evaluator `generation`: greedy answers to held-out prompts, scored by metrics."""

from collections.abc import Iterator, Sequence
from typing import Annotated, cast

import sftrun
from sftrun.builtin.evaluators import _answers


class GenerationOptions(_answers.AnswerOptions):
    """The prompts to answer, and the metrics of the answers."""

    metrics: Annotated[
        tuple[str | sftrun.Use, ...],
        sftrun.component("metric"),
        sftrun.Meta(min_length=1, description="Metrics of the answers. bleu and rouge_* need the extra sftrun[eval]."),
    ] = ("exact_match", "token_f1")


@sftrun.hookimpl
def register_evaluators(register: sftrun.Register) -> None:
    register("generation", Generation, options=GenerationOptions)


class Generation:
    """Metrics of greedy answers to held-out prompts: exact match, token F1, BLEU, ROUGE, or metrics of plugins."""

    def __init__(self, options: GenerationOptions) -> None:
        self.options = options
        self.metrics = {_name(use): sftrun.create("metric", use) for use in options.metrics}

    def check_machine(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        for metric in self.metrics.values():
            if hasattr(metric, "check_machine"):
                yield from metric.check_machine(recipe)

    def check_prepared(self, recipe: sftrun.Recipe, run: sftrun.RunDir) -> Iterator[sftrun.Problem]:
        return _answers.check_prompts(self.options, run)

    def score(self, work: sftrun.kinds.Scoring) -> sftrun.Scores:
        asked = _answers.pick(self.options, work.prompts)
        answers = _answers.answer(self.options, work.model, asked)
        references = [prompt.reference for prompt in asked]
        measuring = sftrun.kinds.Measuring(answers=answers, references=references, prompts=asked)
        results = {name: _measure(metric, measuring) for name, metric in self.metrics.items()}
        exact = sftrun.create("metric", "exact_match").measure(measuring)
        rows = {"exact_match": exact, **{name: values for name, (_, values) in results.items() if values is not None}}
        samples = [
            _answers.sample(prompt, text, **{name: values[row] for name, values in rows.items()})
            for row, (prompt, text) in enumerate(zip(asked, answers, strict=True))
        ]
        return sftrun.Scores({name: measure for name, (measure, _) in results.items()}, samples)


def _name(use: str | sftrun.Use) -> str:
    return use if isinstance(use, str) else use.use


def _measure(
    metric: sftrun.kinds.Metric, work: sftrun.kinds.Measuring
) -> tuple[sftrun.Measure, Sequence[float] | None]:
    """Returns the value of a metric with its direction, and its values by row if it has any."""
    per_row = getattr(metric, "per_row", True)
    result = metric.measure(work)
    values = list(result) if isinstance(result, Sequence) else None
    if per_row != (values is not None) or (values is not None and len(values) != len(work.answers)):
        wanted = f"{len(work.answers)} values, one per answer" if per_row else "one number"
        raise sftrun.UserError(f"the metric {type(metric).__name__} must return {wanted} (per_row = {per_row})")
    value = sum(values) / len(values) if values is not None else float(cast("float", result))
    measure = sftrun.Measure(
        value,
        higher_is_better=getattr(metric, "higher_is_better", True),
        range=getattr(metric, "range", (0.0, 1.0)),
        per_row=per_row,
        rows=len(work.answers),
    )
    return measure, values
