"""`train.batch_size: auto`: of the rows of a step, as many in a forward pass as were run within the memory there is."""

import shutil
from collections.abc import Callable

import msgspec

from sftrun import events
from sftrun.errors import OutOfMemory
from sftrun.events import Event
from sftrun.kinds import Emit
from sftrun.launch import workers
from sftrun.memory import changes, probe
from sftrun.recipe.model import Recipe
from sftrun.runs.directory import RunDir

MARGIN = 0.9  # of the memory that is there: what other batches and other processes take varies
TRIALS = ".size"


class Trial(msgspec.Struct, frozen=True):
    """Bytes in use at most in a process, and how many there were for it."""

    peak: int
    room: int

    @property
    def fits(self) -> bool:
        return self.peak <= MARGIN * self.room


class Chosen(msgspec.Struct, frozen=True):
    """A batch that fits, as changes to the recipe, with what it takes: `measured`, or else estimated."""

    sets: changes.Sets
    trial: Trial
    measured: bool


def measured(recipe: Recipe, run: RunDir, emit: Emit) -> Chosen | None:
    """The largest batch that was run within the memory that is there; None where not even one row at a time was.

    A trial is the largest batches, the largest evaluation and a save in a worker process; the event `BatchTried` says
    how it went.
    """
    expected, free = _estimates(recipe, run)
    ways = {sets["train.batch_size"]: sets for sets in changes.splits(recipe)}

    def measure(size: int) -> Trial | None:
        return _tried(changes.changed(recipe, ways[size]), run, emit)

    found = search(expected, free, measure)
    return Chosen(ways[found[0]], found[1], measured=True) if found else None


def estimated(recipe: Recipe, run: RunDir) -> Chosen | None:
    """The largest batch that is estimated to fit; None where not even one row at a time is."""
    expected, free = _estimates(recipe, run)
    at = _last(expected, MARGIN * free, 0, len(expected))
    if at < 0:
        return None
    size, peak = list(expected.items())[at]
    sets = next(each for each in changes.splits(recipe) if each["train.batch_size"] == size)
    return Chosen(sets, Trial(peak, free), measured=False)


def search(expected: dict[int, int], free: int, measure: Callable[[int], Trial | None]) -> tuple[int, Trial] | None:
    """The largest size that fits, with its trial; `measure` gives None where memory ran out.

    `expected` are the estimated peaks in bytes by size, the smallest first. Each size is tried once at most: first the
    largest that should fit, then what should by the estimates as the last trial has corrected them.
    """
    sizes, best = list(expected), None
    low, high = 0, len(sizes)  # those below `low` are no better than the best, those from `high` on do not fit
    at = max(_last(expected, MARGIN * free, low, high), low)
    while low <= at < high:
        found = measure(sizes[at])
        if found and found.fits:
            best, low = (sizes[at], found), at + 1
        else:
            high = at
        if found:
            at = _last(expected, MARGIN * found.room * expected[sizes[at]] / found.peak, low, high)
        else:
            at = max((each for each in range(low, high) if sizes[each] * 2 <= sizes[at]), default=-1)
        if best is None:
            at = max(at, low)
    return best


def _last(expected: dict[int, int], limit: float, low: int, high: int) -> int:
    """Of the sizes from `low` to `high` the last that is expected within a limit; -1 where none is."""
    peaks = list(expected.values())
    return max((each for each in range(low, high) if peaks[each] <= limit), default=-1)


def _estimates(recipe: Recipe, run: RunDir) -> tuple[dict[int, int], int]:
    seen: list[Event] = []
    workers.work("sftrun.memory.estimate:sizes_here", run, seen.append)
    found = next(event for event in seen if isinstance(event, events.EstimatedBatches))
    return dict(found.peaks), found.free


def _tried(recipe: Recipe, run: RunDir, emit: Emit) -> Trial | None:
    folder = run.path / TRIALS
    shutil.rmtree(folder, ignore_errors=True)  # what a kill has left
    split = {"batch_size": recipe.train.micro_batch, "grad_accum": recipe.train.grad_accum}
    try:
        found = probe.peak(recipe, run, folder)
    except OutOfMemory:
        emit(events.BatchTried(**split, fits=False))
        return None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    trial = Trial(found["peak"], found["room"])
    took = {"peak": trial.peak, "room": trial.room, "processes": found["processes"]}
    emit(events.BatchTried(**split, **took, fits=trial.fits))
    return trial
