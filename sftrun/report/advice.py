"""Advice on a finished run, from its curves and its scores."""

from collections.abc import Iterator

from sftrun.recipe.model import Recipe
from sftrun.report.scores import Metric
from sftrun.runs.advice import curve_advice, memory_advice
from sftrun.runs.history import History

TEACHER_FORCED = ("loss", "perplexity", "token_accuracy")


def advice(recipe: Recipe, history: History, metrics: list[Metric]) -> list[str]:
    """Returns sentences, the most urgent first; none if nothing is wrong."""
    return [*curve_advice(recipe, history), *_answers(metrics), *memory_advice(history)]


def _answers(metrics: list[Metric]) -> Iterator[str]:
    of_answers = [metric for metric in metrics if not any(word in metric.name for word in TEACHER_FORCED)]
    measured = [metric for metric in of_answers if metric.change is not None]
    perfect = all(metric.tuned == 1 for metric in measured)
    if measured and not perfect and not any(metric.verdict == "better" for metric in measured):
        yield (
            "No score of the answers is better than the base model's. Check the data and its formatting first: look at "
            "the marked rows below, and then at the wrong answers; a mistake often shows in both."
        )
