"""Evaluator `judge`: a judge grades every answer to held-out prompts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import sftrun
from sftrun.builtin.evaluators import _answers


class JudgeOptions(_answers.AnswerOptions):
    """Which prompts are answered, and who grades the answers."""

    judge: Annotated[str | sftrun.Use, sftrun.component("judge"), sftrun.Meta(description="Who grades.")] = "reference"


@sftrun.hookimpl
def register_evaluators(register: sftrun.Register) -> None:
    register("judge", JudgeEvaluator, options=JudgeOptions)


class JudgeEvaluator:
    """The mean grade that a judge gives to answers to held-out prompts, from 0 to 1."""

    def __init__(self, options: JudgeOptions) -> None:
        self.options = options
        self.judge: sftrun.Judge = sftrun.create("judge", options.judge)

    def ready(self, recipe: sftrun.Recipe) -> Iterable[sftrun.Problem]:
        ready = getattr(self.judge, "ready", None)
        return ready(recipe) if ready else ()

    def prepared(self, recipe: sftrun.Recipe, run: Path) -> Iterator[sftrun.Problem]:
        return _answers.unanswerable(self.options, run)

    def score(self, model: sftrun.Model, prompts: Mapping[str, Sequence[sftrun.Prompt]]) -> sftrun.Scores:
        asked = _answers.pick(self.options, prompts)
        answers = _answers.answer(self.options, model, asked)
        grades = [self.judge.grade(prompt, text) for prompt, text in zip(asked, answers, strict=True)]
        samples = [
            _answers.sample(prompt, text, score=grade.score, reason=grade.reason)
            for prompt, text, grade in zip(asked, answers, grades, strict=True)
        ]
        return sftrun.Scores({"score": sum(grade.score for grade in grades) / len(grades)}, samples)
