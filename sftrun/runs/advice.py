"""Advice from the curves of a training: overfitting, divergence, no learning, batches that did not fit."""

from collections.abc import Iterator
from typing import Any

from sftrun.events import Eval, Event, Resumed, Step, Warned, encode
from sftrun.kinds import Emit
from sftrun.recipe.model import Recipe
from sftrun.runs.history import History, Points, build_history
from sftrun.runs.numbers import format_number

FEWEST = 4  # points; shorter curves have no direction
ROSE = 1.02  # ratio of a loss to an earlier one, from which it counts as risen
FELL = 0.98  # ratio of a loss to an earlier one, below which it counts as fallen
DIVERGED = 1.1  # ratio of the last training loss to the first one, from which training diverges
ENOUGH = 10  # points of a curve for advice during training, as early curves are noisy
HIGH = 0.5  # nats per token; a flat curve below it has learned already


def curve_advice(recipe: Recipe, history: History) -> list[str]:
    """Returns what the curves suggest, the most urgent first."""
    return [*_diverging(history), *_overfitting(recipe, history), *_flat(recipe, history)]


def memory_advice(history: History) -> list[str]:
    """Returns what to change after a run whose batches had to shrink."""
    return list(_memory(history))


class Watch:
    """A listener that passes events on, and warns once if training overfits, diverges, or does not learn."""

    def __init__(self, recipe: Recipe, before: list[dict[str, Any]], emit: Emit) -> None:
        self.recipe = recipe
        self.events = before
        self.emit = emit
        self.warned: set[str] = set()  # topics

    def __call__(self, event: Event) -> None:
        self.emit(event)
        if not isinstance(event, Step | Eval | Resumed):
            return
        self.events.append(encode(event))
        if isinstance(event, Eval):
            self._warn("overfitting", _overfitting(self.recipe, build_history(self.events)))
        elif isinstance(event, Step) and _is_half_way(event) and "learning" not in self.warned:
            past = build_history(self.events)
            if len(past.loss) >= ENOUGH:
                self._warn("learning", [*_diverging(past), *_flat(self.recipe, past)])

    def _warn(self, about: str, messages: Iterator[str] | list[str]) -> None:
        if about in self.warned:
            return
        for message in messages:
            self.warned.add(about)
            self.emit(Warned(message=message, about=about))


def _is_half_way(event: Step) -> bool:
    """Returns True from the middle of a training on; False if its number of steps is unknown."""
    return bool(event.steps and event.step * 2 >= event.steps)


def _diverging(history: History) -> Iterator[str]:
    if len(history.loss) >= FEWEST:
        first, last = _ends(history.loss)
        if last > first * DIVERGED:
            yield (
                f"The training loss rose, from {format_number(first)} to {format_number(last)}. "
                "Lower train.learning_rate, or raise train.warmup."
            )


def _overfitting(recipe: Recipe, history: History) -> Iterator[str]:
    if len(history.validation) < 2 or len(history.loss) < FEWEST:
        return
    step, lowest = min(history.validation, key=lambda point: point[1])
    last_step, last = history.validation[-1]
    before, after = _around(history.loss, step), _around(history.loss, last_step)
    if last > lowest * ROSE and before and after and after < before * FELL:
        fell = f"from {format_number(before)} to {format_number(after)}"
        yield (
            f"Overfitting: the validation loss was lowest at step {step:,.0f} ({format_number(lowest)}) and rose to "
            f"{format_number(last)}, while the training loss fell on, {fell}. "
            f"{_earlier(recipe)}, or train on more and more varied rows."
        )


def _earlier(recipe: Recipe) -> str:
    kept = "the model has the lowest loss" if recipe.train.keeps_best else "train.keep_best: true keeps the best"
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
            f"{both} flat and high ({format_number(first)} at first, {format_number(last)} at the end). "
            f"Raise train.learning_rate (it was {format_number(rate)}), check what the rows say, "
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
    """Returns the means of the first fifth and of the last fifth of a curve."""
    size = max(1, len(points) // 5)
    return _mean(points[:size]), _mean(points[-size:])


def _around(points: Points, step: float) -> float | None:
    """Returns the mean of the last three points up to a step; None if there are none."""
    until = [point for point in points if point[0] <= step][-3:]
    return _mean(until) if until else None


def _mean(points: Points) -> float:
    return sum(value for _, value in points) / len(points)
