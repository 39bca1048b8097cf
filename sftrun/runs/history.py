"""How training went: the events of the steps as curves and rates."""

import math
from typing import Any

import msgspec

Points = list[tuple[float, float]]


class History(msgspec.Struct, frozen=True):
    """Values by step; `skipped` counts the ones that were not finite, `shrunk` has the batches that took too much."""

    loss: Points
    validation: Points
    learning_rate: Points
    skipped: int = 0
    shrunk: list[dict[str, Any]] = []


class Speed(msgspec.Struct, frozen=True):
    """Tokens that went through training, and how many a second."""

    tokens: int
    trained: int
    seconds: float

    @property
    def tokens_per_s(self) -> float | None:
        return self.tokens / self.seconds if self.seconds else None

    @property
    def trained_per_s(self) -> float | None:
        return self.trained / self.seconds if self.seconds else None


def history(events: list[dict[str, Any]]) -> History:
    """The curves; a run that was resumed counts from where it went on, not what it did twice."""
    steps: list[dict[str, Any]] = []
    evals: list[dict[str, Any]] = []
    for event in kept(events):
        kind, step = event.get("event"), event.get("step")
        if kind not in ("step", "eval") or not isinstance(step, (int, float)):
            continue
        if kind == "step" and steps and step <= steps[-1]["step"]:
            steps = [each for each in steps if each["step"] < step]
            evals = [each for each in evals if each["step"] < step]
        (steps if kind == "step" else evals).append(event)
    named = [(steps, "loss"), (evals, "loss"), (steps, "learning_rate")]
    curves = [_points(each, key) for each, key in named]
    skipped = sum(key in event for each, key in named for event in each) - sum(map(len, curves))
    shrunk = [event for event in events if event.get("event") == "batch_shrunk"]
    return History(curves[0], curves[1], curves[2], skipped, shrunk)


def kept(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All events but the steps and evaluations that a resumed run did once more."""
    found: list[dict[str, Any]] = []
    for event in events:
        if event.get("event") == "resumed":
            found = [each for each in found if not _after(each, event.get("step", 0))]
        found.append(event)
    return found


def _after(event: dict[str, Any], step: float) -> bool:
    at = event.get("step")
    return event.get("event") in ("step", "eval") and isinstance(at, (int, float)) and at > step


def _points(events: list[dict[str, Any]], key: str) -> Points:
    # by step: an evaluation repeated at the same step replaces the earlier one
    found: dict[float, Any] = {float(event["step"]): event.get(key) for event in events}
    return [(step, float(value)) for step, value in found.items() if is_number(value)]


def is_number(value: Any) -> bool:
    """Whether a value can be drawn: finite, and far from where differences overflow."""
    return isinstance(value, (int, float)) and math.isfinite(value) and abs(value) < 1e100


def speed(events: list[dict[str, Any]]) -> Speed:
    """Tokens and seconds of training alone, summed over the logged intervals; what was done twice counts once."""
    total = {"tokens": 0, "trained_tokens": 0}
    before = dict(total)
    seconds = 0.0
    for event in kept(events):
        if event.get("event") != "step":
            continue
        for key in total:
            now = int(event.get(key) or 0)
            # the worker of a backend that does not say `resumed` counts from zero again
            done = now - before[key] if now >= before[key] else now
            rate = event.get(f"{key}_per_s")
            if key == "tokens" and is_number(rate) and rate:
                seconds += done / float(rate)
            total[key] += done
            before[key] = now
    return Speed(total["tokens"], total["trained_tokens"], seconds)
