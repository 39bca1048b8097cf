"""The history of a training: curves and speed, from the events of its steps."""

import math
from typing import Any

import msgspec

Points = list[tuple[float, float]]


class History(msgspec.Struct, frozen=True):
    """Curves of a training; `skipped` counts values that are not finite, `shrunk` has an event per out-of-memory."""

    loss: Points
    validation: Points
    learning_rate: Points
    skipped: int = 0
    shrunk: list[dict[str, Any]] = []


class Speed(msgspec.Struct, frozen=True):
    """The tokens that a training read, and its speed in tokens per second."""

    tokens: int
    trained: int
    seconds: float

    @property
    def tokens_per_s(self) -> float | None:
        return self.tokens / self.seconds if self.seconds else None

    @property
    def trained_per_s(self) -> float | None:
        return self.trained / self.seconds if self.seconds else None


def build_history(events: list[dict[str, Any]]) -> History:
    """Returns the curves of a training; steps that a resumed run repeated count once."""
    steps: list[dict[str, Any]] = []
    evals: list[dict[str, Any]] = []
    for event in drop_repeated(events):
        kind = event.get("event")
        step = event.get("step")
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


def drop_repeated(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the events without steps and evaluations that a resumed run did again later."""
    kept: list[dict[str, Any]] = []
    for event in events:
        if event.get("event") == "resumed":
            kept = [each for each in kept if not _is_after(each, event.get("step", 0))]
        kept.append(event)
    return kept


def _is_after(event: dict[str, Any], step: float) -> bool:
    at = event.get("step")
    return event.get("event") in ("step", "eval") and isinstance(at, (int, float)) and at > step


def _points(events: list[dict[str, Any]], key: str) -> Points:
    # by step: a repeated evaluation at the same step replaces the earlier one
    values: dict[float, Any] = {float(event["step"]): event.get(key) for event in events}
    return [(step, float(value)) for step, value in values.items() if is_number(value)]


def is_number(value: Any) -> bool:
    """Returns True if a value can be drawn: finite, and so small that differences do not overflow."""
    return isinstance(value, (int, float)) and math.isfinite(value) and abs(value) < 1e100


def measure_speed(events: list[dict[str, Any]]) -> Speed:
    """Returns tokens and seconds of training without evaluations, summed over logged intervals.

    Repeated steps count once.
    """
    total = {"tokens": 0, "trained_tokens": 0}
    before = dict(total)
    seconds = 0.0
    for event in drop_repeated(events):
        if event.get("event") != "step":
            continue
        for key in total:
            now = int(event.get(key) or 0)
            # a backend without the event `resumed` counts from zero after a restart
            done = now - before[key] if now >= before[key] else now
            rate = event.get(f"{key}_per_s")
            if key == "tokens" and is_number(rate) and rate:
                seconds += done / float(rate)
            total[key] += done
            before[key] = now
    return Speed(total["tokens"], total["trained_tokens"], seconds)
