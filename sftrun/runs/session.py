"""The life of a run in this process: its lock, its record of stages and events, and errors with their place."""

import contextlib
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from sftrun import files
from sftrun.errors import Interrupted, Problem, UserError
from sftrun.events import StageChanged
from sftrun.kinds import Tracker, Tracking
from sftrun.recipe.document import Document
from sftrun.recipe.model import Recipe
from sftrun.registry import current
from sftrun.runs import record, resume
from sftrun.runs.directory import RunDir
from sftrun.runs.recorder import Recorder
from sftrun.runs.stage import Stage, StageWork

TrackedStatus = Literal["done", "failed", "interrupted"]


@contextlib.contextmanager
def locked(run: RunDir, stages: Sequence[Stage]) -> Iterator[None]:
    """A lock on the run directory; after a signal or on a full disk, the error has the command that resumes the run."""
    try:
        with run.locked():
            yield
    except KeyboardInterrupt as error:
        raise Interrupted(resume.describe_resume(run, stages)) from error
    except OSError as error:
        if hint := files.disk_advice(error):
            raise UserError(files.first_line(error), hint=f"{hint}; {resume.describe_resume(run, stages)}") from error
        raise


@contextlib.contextmanager
def with_places(document: Document) -> Iterator[None]:
    """A context in which problems of a recipe key get the place of the key in the recipe's files."""
    try:
        yield
    except UserError as error:
        raise UserError(_placed(problem, document) for problem in error.problems) from error


def _placed(problem: Problem, document: Document) -> Problem:
    if problem.where is not None or problem.path is None:
        return problem
    return msgspec.structs.replace(problem, where=document.place(problem.path))


@contextlib.contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """A folder in the cache, deleted on exit; a run inside it cannot be resumed."""
    root = files.cache_folder()
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
    try:
        yield folder
    except KeyboardInterrupt as error:
        raise Interrupted("nothing is kept except the prepared data") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def trackers(recipe: Recipe, recorder: Recorder, resumed: bool) -> Iterator[None]:
    """The recipe's trackers, given every event of the run; one that fails is dropped with a warning."""
    started: dict[str, Tracker] = {}
    status: TrackedStatus = "failed"
    try:
        for name, tracker in _start_trackers(recipe, recorder, resumed):
            started[name] = tracker
        recorder.listeners |= {name: tracker.track for name, tracker in started.items()}
        yield
        status = "done"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        for name in started:
            recorder.listeners.pop(name, None)
        for name, tracker in started.items():
            try:
                tracker.finish(status)
            except (Exception, SystemExit) as error:
                with contextlib.suppress(OSError):  # a full disk
                    recorder.warn_of(f"the {name} failed at the end", error)


def _start_trackers(recipe: Recipe, recorder: Recorder, resumed: bool) -> Iterator[tuple[str, Tracker]]:
    """Yields the trackers that start, each with its name in warnings."""
    counts: Counter[str] = Counter()
    for use in recipe.trackers:
        counts[use.use] += 1
        name = f"tracker {use.use}" + (f" #{counts[use.use]}" if counts[use.use] > 1 else "")
        try:
            tracker: Tracker = current().create("tracker", use)
            tracker.start(Tracking(recipe=recipe, run=recorder.run, resumed=resumed))
        except (Exception, SystemExit) as error:
            recorder.warn_of(f"the {name} did not start", error)
        else:
            yield name, tracker


def run_stage(stage: Stage, work: StageWork) -> None:
    """Runs one stage, and records its start, its end or its failure."""
    run, emit, name = work.run, work.emit, stage.name
    emit(StageChanged(stage=name, status="started"))
    run.stage(name, "started")
    started = time.monotonic()
    try:
        stage.call(stage.target, work)
        if stage.after:
            stage.call(stage.after, work)
    except BaseException as error:
        record_failure(stage, work, error)
        raise
    seconds = round(time.monotonic() - started, 2)
    run.stage(name, "done", seconds=seconds, files=record.list_files(run.path, stage.writes))
    emit(StageChanged(stage=name, status="done", seconds=seconds))


def run_stage_once(stage: Stage, work: StageWork) -> None:
    """Runs a stage if it is not done yet."""
    if not work.run.done(stage.name):
        run_stage(stage, work)
        return
    work.emit(StageChanged(stage=stage.name, status="kept"))
    if stage.after:
        try:
            stage.call(stage.after, work)
        except BaseException as error:
            record_failure(stage, work, error)
            raise


def record_failure(stage: Stage, work: StageWork, error: BaseException) -> None:
    """Records that a stage was interrupted or failed, with the reason."""
    interrupted = isinstance(error, KeyboardInterrupt)
    with contextlib.suppress(OSError):  # a full disk cannot take a record either; the error matters more
        work.run.stage(
            stage.name, "interrupted" if interrupted else "failed", reason=str(error) or type(error).__name__
        )
        work.emit(StageChanged(stage=stage.name, status="interrupted" if interrupted else "failed"))
