"""Curves as geometry for an SVG: lines, ticks and a table, which the template draws."""

import math
from collections.abc import Sequence

import msgspec

from sftrun.report.scores import spread
from sftrun.runs.history import History, Points

WIDTH, HEIGHT = 560, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 30, 42  # margins; the legend is above the lines
MOST_POINTS = 600  # more cannot be distinguished on a screen
FEW_POINTS = 40  # with no more points than this, each one gets a mark
TABLE_ROWS = 8


class Line(msgspec.Struct, frozen=True):
    """One curve: the name of its style, its label, and its points in SVG coordinates."""

    style: str
    label: str
    points: str
    marks: list[tuple[str, str]]


class Tick(msgspec.Struct, frozen=True):
    """A position on an axis, in SVG coordinates, with its label."""

    at: str
    label: str


class Chart(msgspec.Struct, frozen=True):
    """One chart, with everything that the template needs to draw it."""

    title: str
    y_label: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM
    width: int = WIDTH
    height: int = HEIGHT


class Axis(msgspec.Struct, frozen=True):
    """A range of values and the range of coordinates that it is drawn on."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> str:
        """Returns the coordinate of a value."""
        position = self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)
        return f"{position:.1f}"

    def ticks(self, count: int, least: float = 0.0) -> list[Tick]:
        """Returns about `count` ticks at round values, at least `least` apart."""
        step = max(round_step((self.high - self.low) / count), least)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        values = [index * step for index in range(first, last + 1)]
        return [Tick(self.at(value), _label(value)) for value in values]


def charts(history: History) -> list[Chart]:
    """Returns the charts of the loss and the learning rate, without empty curves and empty charts."""
    losses = [("train", "training loss", history.loss), ("val", "validation loss", history.validation)]
    rates = [("rate", "learning rate", history.learning_rate)]
    drawn = [("Loss by step", "loss (nats per token)", losses), ("Learning rate by step", "learning rate", rates)]
    return [chart(title, label, lines) for title, label, lines in drawn if any(points for _, _, points in lines)]


def chart(title: str, y_label: str, curves: Sequence[tuple[str, str, Points]]) -> Chart:
    """Returns one chart of curves (style, label, points), of which at least one has a point."""
    every = [point for _, _, points in curves for point in points]
    x = Axis(*_range([step for step, _ in every]), LEFT, WIDTH - RIGHT)
    y = Axis(*_range([value for _, value in every]), HEIGHT - BOTTOM, TOP)
    lines = [_line(style, label, points, x, y) for style, label, points in curves if points]
    return Chart(title, y_label, lines, x.ticks(6, least=1), y.ticks(5))


def table(history: History) -> list[tuple[float, float | None, float | None, float | None]]:
    """Returns a few rows (step, training loss, validation loss, learning rate), evenly spaced."""
    loss, validation, rate = dict(history.loss), dict(history.validation), dict(history.learning_rate)
    steps = {*_ends_and_between(list(loss)), *_ends_and_between(list(validation))}
    return [(step, loss.get(step), validation.get(step), rate.get(step)) for step in sorted(steps)]


def _ends_and_between(steps: list[float]) -> list[float]:
    return [*spread(steps, TABLE_ROWS), *steps[-1:]]


def _line(style: str, label: str, points: Points, x: Axis, y: Axis) -> Line:
    places = [(x.at(step), y.at(value)) for step, value in thinned(points)]
    marks = places if len(places) <= FEW_POINTS else []
    return Line(style, label, " ".join(f"{left},{top}" for left, top in places), marks)


def thinned(points: Points) -> Points:
    """Returns at most MOST_POINTS points; neighbours are averaged."""
    size = math.ceil(len(points) / MOST_POINTS)
    buckets = [points[start : start + size] for start in range(0, len(points), max(size, 1))]
    return [(bucket[-1][0], sum(value for _, value in bucket) / len(bucket)) for bucket in buckets]


def _range(values: list[float]) -> tuple[float, float]:
    """Returns the range from the lowest value, or zero if it is near, to the highest; never empty."""
    low, high = min(values), max(values)
    if 0 < low < 0.5 * high:
        low = 0.0
    # a flat curve is drawn in the middle
    room = 0.05 * (high - low) if high - low > 1e-9 * abs(high) else 0.5 * abs(high) or 1.0
    return (low if low == 0 else low - room), high + room


def round_step(step: float) -> float:
    """Rounds up to 1, 2, 5 or 10 times a power of ten."""
    power: float = 10.0 ** math.floor(math.log10(step))
    return next((times * power for times in (1, 2, 5) if times * power >= step * (1 - 1e-9)), 10 * power)


def _label(value: float) -> str:
    text = f"{value:,.0f}" if abs(value) >= 1000 and abs(value) < 1e7 else f"{value:.4g}"
    return text.replace("-", "−", 1) if value < 0 else text
