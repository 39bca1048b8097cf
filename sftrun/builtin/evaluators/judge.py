"""Evaluator `judge`: a judge grades every answer to held-out prompts."""

from collections.abc import Iterable, Iterator
from typing import Annotated

import sftrun
from sftrun.builtin.evaluators import _answers


class JudgeOptions(_answers.AnswerOptions):
    """The prompts to answer, and the judge of the answers."""

    judge: Annotated[
        str | sftrun.Use, sftrun.component("judge"), sftrun.Meta(description="The judge that grades the answers.")
    ] = "reference"


@sftrun.hookimpl
def register_evaluators(register: sftrun.Register) -> None:
    register("judge", JudgeEvaluator, options=JudgeOptions)


class JudgeEvaluator:
    """Mean grade of answers to held-out prompts by a judge, from 0 to 1."""

    def __init__(self, options: JudgeOptions) -> None:
        self.options = options
        self.judge: sftrun.kinds.Judge = sftrun.create("judge", options.judge)

    def check_machine(self, recipe: sftrun.Recipe) -> Iterable[sftrun.Problem]:
        check = getattr(self.judge, "check_machine", None)
        return check(recipe) if check else ()

    def check_prepared(self, recipe: sftrun.Recipe, run: sftrun.RunDir) -> Iterator[sftrun.Problem]:
        return _answers.check_prompts(self.options, run)

    def score(self, work: sftrun.kinds.Scoring) -> sftrun.Scores:
        asked = _answers.pick(self.options, work.prompts)
        answers = _answers.answer(self.options, work.model, asked)
        grades = [
            self.judge.grade(sftrun.kinds.Grading(prompt=prompt, answer=text, seed=work.seed))
            for prompt, text in zip(asked, answers, strict=True)
        ]
        samples = [
            _answers.sample(prompt, text, score=grade.score, reason=grade.reason)
            for prompt, text, grade in zip(asked, answers, grades, strict=True)
        ]
        mean = sum(grade.score for grade in grades) / len(grades)
        return sftrun.Scores({"score": sftrun.Measure(mean, rows=len(grades))}, samples)
