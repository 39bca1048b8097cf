"""Evaluator `generation`: greedy answers to held-out prompts, compared with the references."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import sftrun
from sftrun.builtin.evaluators import _answers, _overlap


class GenerationOptions(_answers.AnswerOptions):
    """Which prompts are answered, and how answers are scored."""

    metrics: Annotated[
        tuple[Literal["exact_match", "token_f1", "bleu", "rouge_1", "rouge_2", "rouge_l"], ...],
        sftrun.Meta(min_length=1, description="Scores from 0 to 1. bleu and rouge_* need the extra sftrun[eval]."),
    ] = ("exact_match", "token_f1")


@sftrun.hookimpl
def register_evaluators(register: sftrun.Register) -> None:
    register("generation", Generation, options=GenerationOptions)


class Generation:
    """Exact match, token F1, BLEU and ROUGE of greedy answers to held-out prompts."""

    def __init__(self, options: GenerationOptions) -> None:
        self.options = options

    def ready(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        for package in sorted({_overlap.PACKAGES[name] for name in self.options.metrics if name in _overlap.PACKAGES}):
            yield from sftrun.missing_packages(
                package, extra="eval", path=("evaluators",), why="the evaluator generation"
            )

    def prepared(self, recipe: sftrun.Recipe, run: Path) -> Iterator[sftrun.Problem]:
        return _answers.unanswerable(self.options, run)

    def score(self, model: sftrun.Model, prompts: Mapping[str, Sequence[sftrun.Prompt]]) -> sftrun.Scores:
        asked = _answers.pick(self.options, prompts)
        answers = _answers.answer(self.options, model, asked)
        metrics = _overlap.compute(self.options.metrics, answers, [prompt.reference for prompt in asked])
        samples = [
            _answers.sample(prompt, text, exact_match=_overlap.exact_match(text, prompt.reference))
            for prompt, text in zip(asked, answers, strict=True)
        ]
        return sftrun.Scores(metrics, samples)
