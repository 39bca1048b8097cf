"""Promises of a metric."""

import math
from collections.abc import Sequence
from typing import Any

from sftrun import kinds
from sftrun.testing import examples
from sftrun.types import Prompt

CLOSE = 1e-9  # absolute error; sums in another order
REFERENCES = (  # at least four words each, so that metrics on sequences of words reach their best value too
    "The Danube flows through ten countries to the Black Sea.",
    "Turn the red wheel until the small lamp is green.",
    "It takes seven degrees below zero to freeze the brine.",
    "She wrote four letters, and burnt every one of them.",
)
WRONG = tuple("x" * (1 + number) for number in range(len(REFERENCES)))


def check_metric(metric: kinds.Metric) -> None:
    """Raises AssertionError unless a metric keeps to its direction, range and rows.

    Answers that equal their references reach the best end of the range, if it has one, and are not worse than wrong
    ones. There is one finite value per answer (`per_row`), or one for all, and the order of rows does not change it.
    """
    lowest, highest = _range(metric)
    higher = getattr(metric, "higher_is_better", True)
    assert isinstance(higher, bool), f"higher_is_better must be True or False, not {higher!r}"
    best = highest if higher else lowest
    right, wrong = (_value(metric, answers, REFERENCES) for answers in (REFERENCES, WRONG))
    end = f"answers that equal their references have {right}"
    assert best is None or math.isclose(right, best, abs_tol=CLOSE), f"{end}, but the best value is {best}"
    not_worse = right >= wrong - CLOSE if higher else right <= wrong + CLOSE
    direction = "higher" if higher else "lower"
    assert not_worse, f"{end} and wrong ones {wrong}, but {direction} is better"
    answers = [*examples.ODD_ANSWERS, *REFERENCES]
    references = [REFERENCES[row % len(REFERENCES)] for row in range(len(answers))]
    _check_order(metric, answers, references)
    _value(metric, REFERENCES, examples.ODD_ANSWERS[: len(REFERENCES)])  # odd references must not fail either
    for answer in examples.ODD_ANSWERS:
        _value(metric, [answer], [REFERENCES[0]])


def check_range(name: str, value: float, bounds: tuple[float | None, float | None]) -> None:
    """Raises AssertionError if a value lies outside the range of its metric."""
    lowest, highest = bounds
    inside = (lowest is None or value >= lowest - CLOSE) and (highest is None or value <= highest + CLOSE)
    assert inside, f"{name} is {value}, outside its range {lowest} to {highest}"


def _range(metric: Any) -> tuple[float | None, float | None]:
    declared = getattr(metric, "range", (0.0, 1.0))
    fits = isinstance(declared, Sequence) and len(declared) == 2
    fits = fits and all(end is None or isinstance(end, float | int) for end in declared)
    assert fits, f"range must be (lowest, highest), numbers or None, not {declared!r}"
    lowest, highest = declared
    ordered = lowest is None or highest is None or lowest < highest
    assert ordered, f"range must begin with its lowest value, not {declared!r}"
    return lowest, highest


def _check_order(metric: kinds.Metric, answers: Sequence[str], references: Sequence[str]) -> None:
    forwards, backwards = (
        _measure(metric, answers, references),
        _measure(metric, answers[::-1], references[::-1]),
    )
    again = _measure(metric, answers, references)
    assert again == forwards, "the values are not the same a second time"
    same = all(math.isclose(*pair, abs_tol=CLOSE) for pair in zip(forwards, backwards[::-1], strict=True))
    assert same, "the values depend on the order of the rows"


def _value(metric: kinds.Metric, answers: Sequence[str], references: Sequence[str]) -> float:
    """Returns the value of a metric as an evaluator computes it: the mean over rows, or the corpus value."""
    values = _measure(metric, answers, references)
    return sum(values) / len(values)


def _measure(metric: kinds.Metric, answers: Sequence[str], references: Sequence[str]) -> list[float]:
    """Returns the values by row, or the one value of the corpus, checked."""
    prompts = [
        Prompt(f"test.jsonl:{number}", [{"role": "user", "content": "?"}], [1], reference)
        for number, reference in enumerate(references, 1)
    ]
    try:
        result = metric.measure(kinds.Measuring(answers=answers, references=references, prompts=prompts))
    except Exception as error:
        starts = [answer[:20] for answer in answers]
        raise AssertionError(f"measure() failed for the answers {starts}: {type(error).__name__}: {error}") from error
    per_row = getattr(metric, "per_row", True)
    if per_row:
        one_each = isinstance(result, Sequence) and len(result) == len(answers)
        assert one_each, f"measure() must return {len(answers)} values, one per answer (per_row), not {result!r}"
    values: list[Any] = list(result) if per_row and isinstance(result, Sequence) else [result]
    for value in values:
        number = isinstance(value, float | int)
        assert number, f"measure() must return {'numbers' if per_row else 'one number'}, not {value!r}"
        assert math.isfinite(value), f"a value must be finite, not {value}"
        check_range("a value", value, _range(metric))
    return [float(value) for value in values]
