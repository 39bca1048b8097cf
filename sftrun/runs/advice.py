"""Advice from the curves of a training: overfitting, divergence, nothing learned, batches that did not fit."""

from collections.abc import Iterator
from typing import Any

from sftrun.events import Eval, Event, Resumed, Step, Warned, encode
from sftrun.kinds import Emit
from sftrun.recipe.model import Recipe
from sftrun.runs.history import History, Points, history
from sftrun.runs.numbers import number

FEWEST = 4  # points of a curve that has a direction
ROSE = 1.02
FELL = 0.98
DIVERGED = 1.1
ENOUGH = 10  # points of a curve that shows so early that nothing is learned
HIGH = 0.5  # nats per token: a flat curve below is one that has learnt already


def curve_advice(recipe: Recipe, history: History) -> list[str]:
    """Returns what the curves suggest, the most urgent first."""
    return [*_diverging(history), *_overfitting(recipe, history), *_flat(recipe, history)]


def memory_advice(history: History) -> list[str]:
    """Returns what to change after a run whose batches had to shrink."""
    return list(_memory(history))


class Watch:
    """Passes on the events of a training, and warns once when it overfits, diverges, or does not learn."""

    def __init__(self, recipe: Recipe, before: list[dict[str, Any]], emit: Emit) -> None:
        self.recipe, self.events, self.emit = recipe, before, emit
        self.said: set[str] = set()

    def __call__(self, event: Event) -> None:
        self.emit(event)
        if not isinstance(event, Step | Eval | Resumed):
            return
        self.events.append(encode(event))
        if isinstance(event, Eval):
            self._say("overfitting", _overfitting(self.recipe, history(self.events)))
        elif isinstance(event, Step) and event.steps and event.step * 2 >= event.steps and "learning" not in self.said:
            past = history(self.events)
            if len(past.loss) >= ENOUGH:
                self._say("learning", [*_diverging(past), *_flat(self.recipe, past)])

    def _say(self, about: str, found: Iterator[str] | list[str]) -> None:
        if about in self.said:
            return
        for message in found:
            self.said.add(about)
            self.emit(Warned(message=message, about=about))


def _diverging(history: History) -> Iterator[str]:
    if len(history.loss) >= FEWEST:
        first, last = _ends(history.loss)
        if last > first * DIVERGED:
            yield (
                f"The training loss rose, from {number(first)} to {number(last)}. "
                "Lower train.learning_rate, or raise train.warmup."
            )


def _overfitting(recipe: Recipe, history: History) -> Iterator[str]:
    if len(history.validation) < 2 or len(history.loss) < FEWEST:
        return
    step, lowest = min(history.validation, key=lambda point: point[1])
    last_step, last = history.validation[-1]
    before, after = _around(history.loss, step), _around(history.loss, last_step)
    if last > lowest * ROSE and before and after and after < before * FELL:
        yield (
            f"Overfitting: the validation loss was lowest at step {step:,.0f} ({number(lowest)}) and rose to "
            f"{number(last)}, while the training loss fell on, from {number(before)} to {number(after)}. "
            f"{_earlier(recipe)}, or train on more and more varied rows."
        )


def _earlier(recipe: Recipe) -> str:
    kept = "the model is that of the lowest loss" if recipe.train.keeps_best else "train.keep_best: true keeps the best"
    how = "lower its patience" if recipe.train.early_stopping else "train.early_stopping, or fewer train.epochs"
    return f"Stop earlier ({how}; {kept})"


def _flat(recipe: Recipe, history: History) -> Iterator[str]:
    if len(history.loss) < FEWEST:
        return
    first, last = _ends(history.loss)
    flat = first * FELL < last <= first * DIVERGED
    validation = history.validation
    flat &= not validation or validation[-1][1] > validation[0][1] * FELL
    if flat and last > HIGH:
        both = "The training loss and the validation loss are" if validation else "The training loss is"
        rate = recipe.train.learning_rate or max((value for _, value in history.learning_rate), default=None)
        yield (
            f"{both} flat and high ({number(first)} at first, {number(last)} at the end). "
            f"Raise train.learning_rate (it was {number(rate)}), look at whether the rows say what they should, "
            "or take a larger model."
        )


def _memory(history: History) -> Iterator[str]:
    if history.shrunk:
        count, last = len(history.shrunk), history.shrunk[-1]
        keys = ("batch_size", "grad_accum", "eval_batch_size")
        sets = ", ".join(f"{key}: {last[key]}" for key in keys if key in last)
        yield (
            f"Memory ran out {'once' if count == 1 else f'{count} times'}, and the run went on with smaller batches "
            f"(train.on_oom). To begin with those next time, write train: {{{sets}}}, or let batch_size: auto choose."
        )


def _ends(points: Points) -> tuple[float, float]:
    """Means of the first and of the last fifth."""
    size = max(1, len(points) // 5)
    return _mean(points[:size]), _mean(points[-size:])


def _around(points: Points, step: float) -> float | None:
    """The mean of the last three points up to a step."""
    until = [point for point in points if point[0] <= step][-3:]
    return _mean(until) if until else None


def _mean(points: Points) -> float:
    return sum(value for _, value in points) / len(points)
