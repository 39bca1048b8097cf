"""`train.batch_size: auto`: finds the largest micro-batch that fits, by measuring."""

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

MARGIN = 0.9  # share of the free memory to use, as other batches and other processes may take more
TRIAL_FOLDER = ".size"  # in the run directory, while a trial runs


class Trial(msgspec.Struct, frozen=True):
    """A measurement of a micro-batch: peak memory of a process and the memory available to it, in bytes."""

    peak: int
    room: int

    @property
    def fits(self) -> bool:
        return self.peak <= MARGIN * self.room


class Choice(msgspec.Struct, frozen=True):
    """A batch that fits, as changes to the recipe, with its memory: `measured`, or else estimated."""

    sets: changes.Changes
    trial: Trial
    measured: bool


def measure_batch(recipe: Recipe, run: RunDir, emit: Emit) -> Choice | None:
    """Returns the largest batch that ran within the free memory; None if not even a single row did.

    A trial runs the largest batches, the largest evaluation and a save in a worker process, and emits the event
    `BatchTried`.
    """
    expected, free = _estimate_sizes(recipe, run)
    ways = {sets["train.batch_size"]: sets for sets in changes.split_step(recipe)}

    def measure(size: int) -> Trial | None:
        return _try_batch(changes.apply_changes(recipe, ways[size]), run, emit)

    found = search_largest(expected, free, measure)
    return Choice(ways[found[0]], found[1], measured=True) if found else None


def estimate_batch(recipe: Recipe, run: RunDir) -> Choice | None:
    """Returns the largest batch whose estimate fits; None if not even a single row does."""
    expected, free = _estimate_sizes(recipe, run)
    index = _find_last(expected, MARGIN * free, 0, len(expected))
    if index < 0:
        return None
    size, peak = list(expected.items())[index]
    sets = next(each for each in changes.split_step(recipe) if each["train.batch_size"] == size)
    return Choice(sets, Trial(peak, free), measured=False)


def search_largest(
    expected: dict[int, int], free: int, measure: Callable[[int], Trial | None]
) -> tuple[int, Trial] | None:
    """Returns the largest micro-batch size that fits, with its trial; `measure` returns None if memory ran out.

    `expected` has estimated peaks in bytes by size, in ascending order. Each size is tried at most once. The first
    trial is the largest size that should fit. Each trial corrects the estimates, which give the next size.
    """
    sizes = list(expected)
    best = None
    low, high = 0, len(sizes)  # sizes below `low` are not larger than the best, sizes from `high` on do not fit
    at = max(_find_last(expected, MARGIN * free, low, high), low)
    while low <= at < high:
        trial = measure(sizes[at])
        if trial and trial.fits:
            best = (sizes[at], trial)
            low = at + 1
        else:
            high = at
        if trial:
            at = _find_last(expected, MARGIN * trial.room * expected[sizes[at]] / trial.peak, low, high)
        else:
            at = max((each for each in range(low, high) if sizes[each] * 2 <= sizes[at]), default=-1)
        if best is None:
            at = max(at, low)
    return best


def _find_last(expected: dict[int, int], limit: float, low: int, high: int) -> int:
    """Returns the index of the last size in `[low, high)` whose expected peak is within a limit; -1 if none is."""
    peaks = list(expected.values())
    return max((each for each in range(low, high) if peaks[each] <= limit), default=-1)


def _estimate_sizes(recipe: Recipe, run: RunDir) -> tuple[dict[int, int], int]:
    """Returns estimated peaks by micro-batch size, and the free memory, in bytes."""
    seen: list[Event] = []
    workers.run_in_worker("sftrun.memory.estimate:estimate_sizes_in_worker", run, seen.append)
    sizes = next(event for event in seen if isinstance(event, events.EstimatedBatches))
    return dict(sizes.peaks), sizes.free


def _try_batch(recipe: Recipe, run: RunDir, emit: Emit) -> Trial | None:
    folder = run.path / TRIAL_FOLDER
    shutil.rmtree(folder, ignore_errors=True)  # a killed attempt may have left it
    split = {"batch_size": recipe.train.micro_batch, "grad_accum": recipe.train.grad_accum}
    try:
        found = probe.measure_peak(recipe, run, folder)
    except OutOfMemory:
        emit(events.BatchTried(**split, fits=False))
        return None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    trial = Trial(found["peak"], found["room"])
    took = {"peak": trial.peak, "room": trial.room, "processes": found["processes"]}
    emit(events.BatchTried(**split, **took, fits=trial.fits))
    return trial
