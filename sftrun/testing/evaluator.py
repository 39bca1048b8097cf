"""Promises of an evaluator."""

import math
from typing import Any, Literal

import msgspec

from sftrun import kinds
from sftrun.errors import UserError
from sftrun.testing import examples
from sftrun.testing.metric import check_range
from sftrun.types import Measure, Scores


def check_evaluator(evaluator: kinds.Evaluator) -> None:
    """Raises AssertionError unless metrics are finite, with a direction, and inside their range.

    The samples of two models must be of the same prompts in the same order. An evaluator may ask the model for answers,
    log-likelihoods and losses; without prompts it raises UserError, if anything.
    """
    scores = _score(evaluator, "The Danube.", "tuned")
    _check_scores(scores)
    assert _score(evaluator, "The Danube.", "tuned") == scores, "the scores are not the same a second time"
    other = _score(evaluator, "", "base")
    _check_scores(other)
    assert other.metrics.keys() == scores.metrics.keys(), "the names of the metrics depend on the model"
    for name, measure in scores.metrics.items():
        same = _direction(measure) == _direction(other.metrics[name])
        assert same, f"the direction or the range of {name} depends on the model"
    same = [each["origin"] for each in other.samples] == [each["origin"] for each in scores.samples]
    assert same, "the samples of two models must be of the same prompts, in the same order"
    try:
        evaluator.score(examples.scoring(examples.Parrot(""), {}))
    except UserError:
        return
    except Exception as error:
        raise AssertionError(f"without prompts: must be a UserError, not {type(error).__name__}: {error}") from error


def _score(evaluator: kinds.Evaluator, answer: str, which: Literal["base", "tuned"]) -> Scores:
    prompts = {split: examples.prompts(split) for split in ("val", "test")}
    return evaluator.score(examples.scoring(examples.Parrot(answer), prompts, which))


def _direction(measure: float | Measure) -> Any:
    assert isinstance(measure, Measure)
    return measure.higher_is_better, measure.range, measure.per_row


def _check_scores(scores: Any) -> None:
    assert isinstance(scores, Scores), f"score() must return Scores, not {type(scores).__name__}"
    assert scores.metrics, "there is no metric"
    for name, measure in scores.metrics.items():
        value = measure.value if isinstance(measure, Measure) else measure
        assert isinstance(value, float | int), f"{name} must be a number, not {value!r}"
        assert math.isfinite(value), f"{name} must be finite, not {value}"
        assert isinstance(measure, Measure), f"{name} has no direction; give it as sftrun.Measure({value})"
        check_range(name, value, measure.range)
    for sample in scores.samples:
        missing = {"origin", "messages", "reference", "answer"} - sample.keys()
        assert not missing, f"a sample lacks {', '.join(sorted(missing))}: {sample}"
    msgspec.json.encode(scores)  # they are kept as JSON
