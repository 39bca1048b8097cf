"""Shows the events of a run: a progress bar in a terminal, plain lines elsewhere."""

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from sftrun import events, scrub
from sftrun.cli import output
from sftrun.events import Event
from sftrun.runs.numbers import byte_count

EVERY = 5.0  # seconds between two plain lines of training progress
UNSEEN = (errno.EPIPE, errno.EIO)  # a pipe that nobody reads any more; a terminal that was closed


@contextlib.contextmanager
def watcher() -> Iterator[Callable[[Event], None]]:
    """The display of a run, as a function of an event; the run continues if its output is closed.

    What plugins print meanwhile goes to standard error, because standard output may be JSON.
    """
    shown = Bar() if sys.stderr.isatty() else Lines()

    def watch(event: Event) -> None:
        with _seen_or_not():
            shown(event)

    with _seen_or_not():
        shown.__enter__()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield watch
    finally:
        with _seen_or_not():
            shown.__exit__()


@contextlib.contextmanager
def _seen_or_not() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in UNSEEN:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class Lines:
    """Plain lines for logs and pipes, one per event that matters."""

    def __init__(self) -> None:
        self.said = 0.0

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *failure: object) -> None:
        pass

    def __call__(self, event: Event) -> None:
        if isinstance(event, events.Step):
            now = time.monotonic()
            if now - self.said < EVERY and event.step != event.steps:
                return
            self.said = now
        line = line_of(event)
        if line:
            print(line, file=sys.stderr, flush=True)


class Bar:
    """A progress bar with step, loss, tokens per second and the time left."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = [TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[facts]}")]
        self.progress = Progress(*columns, TimeRemainingColumn(), console=output.console())
        self.task: Any = None

    def __enter__(self) -> "Bar":
        self.progress.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.progress.stop()

    def __call__(self, event: Event) -> None:
        if not isinstance(event, events.Step):
            line = line_of(event)
            if line:
                self.progress.console.print(scrub.printable(line), markup=False)
            return
        if self.task is None:
            self.task = self.progress.add_task("train", total=event.steps, facts="")
        self.progress.update(self.task, completed=event.step, facts=_facts(event))


def line_of(event: Event) -> str | None:
    """Returns an event as a line for people; None if it is not worth one."""
    describe = LINES.get(type(event))
    return describe(event) if describe else None


def _stage(event: events.StageChanged) -> str | None:
    if event.status == "started":
        return event.stage
    if event.status == "kept":
        return f"{event.stage}\n  already done"
    return f"  done in {event.seconds or 0:.1f} s" if event.status == "done" else None


def _step(event: events.Step) -> str:
    return f"  step {event.step}{f'/{event.steps}' if event.steps else ''}  {_facts(event)}"


def _facts(event: events.Step) -> str:
    """Returns the loss and the rates, as far as the backend reports them."""
    rates = ((event.tokens_per_s, "tokens/s"), (event.trained_tokens_per_s, "trained tokens/s"))
    known = ", ".join(f"{rate:,.0f} {unit}" for rate, unit in rates if rate is not None)
    return "  ".join(part for part in (f"loss {event.loss:.4f}" if event.loss is not None else "", known) if part)


def _warning(event: events.Warned) -> str:
    return event.message if "warning:" in event.message else f"warning: {event.message}"


def _restarted(event: events.Restarted) -> str:
    return f"warning: {event.reason}; restarting all processes (restart {event.restart} of {event.of})"


def _joining(event: events.Joining) -> str:
    what = "waits for node 0 to prepare the data" if event.status == "waiting" else "trains"
    return f"node {event.node} of {event.nodes} {what}"


def _evaluating(event: events.Evaluating) -> str:
    return f"    {event.evaluator}" if event.evaluator else f"  evaluating the {event.which} model"


def _launched(event: events.Launched) -> str:
    nodes = f" on {event.nodes} nodes" if event.nodes > 1 else ""
    return f"  {event.processes * event.nodes} processes{nodes}, {event.strategy} over {event.backend}"


def _resumed(event: events.Resumed) -> str:
    return f"  resuming from step {event.step}" if event.step else "  no checkpoint yet: starting at step 0"


def _batch_tried(event: events.BatchTried) -> str:
    tried = f"  tried train.batch_size {event.batch_size}: "
    if event.peak is None or event.room is None:
        return f"{tried}out of memory"
    return f"{tried}{byte_count(event.peak)} of {byte_count(event.room)}{'' if event.fits else ', too close'}"


def _batch_chosen(event: events.BatchChosen) -> str:
    chosen = f"  chosen: {_split(event)}, {event.rows} rows per step; measured {byte_count(event.peak)}"
    return f"{chosen} of {byte_count(event.room)}, of which {event.margin:.0%} stays free"


def _batch_shrunk(event: events.BatchShrunk) -> str:
    if event.during == "evaluation":
        return f"  out of memory in the evaluation; trying again with train.eval_batch_size {event.eval_batch_size}"
    return f"  out of memory; trying again with {_split(event)}, the same number of rows per step"


def _split(event: events.BatchChosen | events.BatchShrunk) -> str:
    return f"train.batch_size {event.batch_size} and train.grad_accum {event.grad_accum}"


def _prepare(event: events.Prepare) -> str | None:
    if event.waiting:
        return "  another process is preparing the same data; waiting for it"
    return "  from the cache" if event.cached else None


def _prepared(event: events.Prepared) -> str:
    left_out = ", ".join(f"{number:,} {label}" for label, number in event.left_out.items())
    return f"  {event.split}: {event.rows:,} rows read{'; ' * bool(left_out)}{left_out}"


LINES: dict[type[Event], Callable[[Any], str | None]] = {
    events.StageChanged: _stage,
    events.Step: _step,
    events.Eval: lambda event: f"  step {event.step}: validation loss {event.loss:.4f}",
    events.Warned: _warning,
    events.Resumed: _resumed,
    events.Restarted: _restarted,
    events.RehearsedStop: lambda event: f"  stopped after step {event.step} on purpose; resuming",
    events.Joining: _joining,
    events.Launched: _launched,
    events.Using: lambda event: (
        f"  attention: {event.attention}; precision: {event.precision}; optimizer: {event.optimizer}"
    ),
    events.StoppedEarly: lambda event: (
        f"  stopped at step {event.step}: the validation loss was lowest at step {event.best_step}"
    ),
    events.Best: lambda event: f"  the model is the checkpoint of step {event.step}, validation loss {event.loss:.4f}",
    events.Prepare: _prepare,
    events.Prepared: _prepared,
    events.BatchTried: _batch_tried,
    events.BatchChosen: _batch_chosen,
    events.BatchShrunk: _batch_shrunk,
    events.Evaluating: _evaluating,
    events.Answered: lambda event: f"    {event.done}/{event.total} answers",
}
