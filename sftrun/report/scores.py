"""Metrics before and after training, and the choice of answers to show."""

import math
from typing import Any, Literal

import msgspec

from sftrun.report.facts import Facts

SHOWN = 20
RIGHT = 0.5

Verdict = Literal["better", "worse", "same", "unknown"]


class Metric(msgspec.Struct, frozen=True):
    """One metric of the base and of the tuned model; None if it was not measured.

    `higher_is_better` is None for a metric that does not say its direction.
    """

    evaluator: str
    name: str
    base: float | None
    tuned: float | None
    higher_is_better: bool | None = True
    range: tuple[float | None, float | None] = (0.0, 1.0)

    @property
    def change(self) -> float | None:
        """Tuned minus base; None if either is missing or not finite."""
        if self.base is None or self.tuned is None:
            return None
        change = self.tuned - self.base
        return change if math.isfinite(change) else None

    @property
    def is_perfect(self) -> bool:
        """True if the tuned model has the best value of the metric's range."""
        return self.tuned is not None and self.tuned == self.range[1 if self.higher_is_better else 0]

    @property
    def verdict(self) -> Verdict:
        """The comparison of the tuned with the base model, by the direction that the metric declares."""
        if self.change is None or self.higher_is_better is None:
            return "unknown"
        if not self.change:
            return "same"
        return "better" if (self.change > 0) == self.higher_is_better else "worse"


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """The answers of one evaluator: the number of right ones, and a few to show.

    `graded` is true if answers have a score from 0 to 1 instead of an exact match.
    """

    evaluator: str
    all: int
    right: int
    wrong: int
    base_right: int
    graded: bool
    shown: list[dict[str, Any]]


def metrics(facts: Facts) -> list[Metric]:
    """Every metric of every evaluator, in the order of the recipe."""
    base, tuned, about = (facts.scores.get(key, {}) for key in ("base", "tuned", "metrics"))
    return [
        Metric(
            evaluator,
            name,
            base.get(evaluator, {}).get(name),
            tuned.get(evaluator, {}).get(name),
            about.get(evaluator, {}).get(name, {}).get("higher_is_better"),
            tuple(about.get(evaluator, {}).get(name, {}).get("range", (0.0, 1.0))),
        )
        for evaluator in {**tuned, **base}
        for name in {**tuned.get(evaluator, {}), **base.get(evaluator, {})}
    ]


def groups(facts: Facts) -> list[Group]:
    """Returns the answers by evaluator; at most SHOWN of them are picked in total."""
    by_evaluator: dict[str, list[dict[str, Any]]] = {}
    for sample in facts.samples:
        by_evaluator.setdefault(str(sample.get("evaluator", "")), []).append(sample)
    room = max(1, SHOWN // max(1, len(by_evaluator)))
    return [_group(name, samples, room) for name, samples in by_evaluator.items()]


def _group(evaluator: str, samples: list[dict[str, Any]], room: int) -> Group:
    right = [sample for sample in samples if is_right(sample.get("tuned"))]
    wrong = [sample for sample in samples if is_right(sample.get("tuned")) is False]
    unscored = [sample for sample in samples if is_right(sample.get("tuned")) is None]
    return Group(
        evaluator=evaluator,
        all=len(samples),
        right=len(right),
        wrong=len(wrong),
        base_right=sum(is_right(sample.get("base")) is True for sample in samples),
        graded=any("score" in (sample.get("tuned") or {}) for sample in samples),
        shown=_picked(wrong, right, unscored, room),
    )


def _picked(wrong: list[Any], right: list[Any], unscored: list[Any], room: int) -> list[Any]:
    # wrong answers first, as they are more informative; half the room is kept for right ones, if there are any
    few_wrong = spread(wrong, max(room - len(right), (room + 1) // 2))
    few_right = spread(right, room - len(few_wrong))
    return [*few_wrong, *few_right, *spread(unscored, room - len(few_wrong) - len(few_right))]


def spread(items: list[Any], count: int) -> list[Any]:
    """Returns up to `count` items, evenly spaced: files are often sorted by task."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def score(answer: dict[str, Any] | None) -> float | None:
    """Returns the exact match or the score of one answer."""
    fields = answer or {}
    value = fields.get("exact_match", fields.get("score"))
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def is_right(answer: dict[str, Any] | None) -> bool | None:
    """Returns True if an answer counts as right; None if it has no score."""
    value = score(answer)
    return None if value is None else value >= RIGHT
