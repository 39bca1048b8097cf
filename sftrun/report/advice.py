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
    of_answers = [metric for metric in metrics if not _is_teacher_forced(metric.name)]
    # a metric without a direction is neither better nor worse
    measured = [metric for metric in of_answers if metric.verdict != "unknown"]
    perfect = all(metric.is_perfect for metric in measured)
    if measured and not perfect and not any(metric.verdict == "better" for metric in measured):
        yield (
            "No score of the answers is better than the base model's. Check the data and its formatting first: look at "
            "the marked rows below, and then at the wrong answers; a mistake often shows in both."
        )


def _is_teacher_forced(name: str) -> bool:
    return any(name == each or name.endswith(f"_{each}") for each in TEACHER_FORCED)
