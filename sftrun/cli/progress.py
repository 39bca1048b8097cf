"""Shows the events of a run: a progress bar in a terminal, plain lines elsewhere."""

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from sftrun.runs.numbers import byte_count

EVERY = 5.0  # seconds between two plain lines of training progress
UNSEEN = (errno.EPIPE, errno.EIO)  # a pipe that nobody reads any more; a terminal that was closed


@contextlib.contextmanager
def watcher() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yields a function that shows an event; the run goes on if its output was closed."""
    shown = Bar() if sys.stderr.isatty() else Lines()

    def watch(event: dict[str, Any]) -> None:
        with _seen_or_not():
            shown(event)

    with _seen_or_not():
        shown.__enter__()
    try:
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

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "step":
            now = time.monotonic()
            if now - self.said < EVERY and event["step"] != event["steps"]:
                return
            self.said = now
        line = told(event)
        if line:
            print(line, file=sys.stderr, flush=True)


class Bar:
    """A progress bar with step, loss, tokens per second and the time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True, highlight=False)
        columns = [TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[facts]}")]
        self.progress = Progress(*columns, TimeRemainingColumn(), console=console)
        self.task: Any = None

    def __enter__(self) -> "Bar":
        self.progress.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.progress.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] != "step":
            line = told(event)
            if line:
                self.progress.console.print(line, markup=False)
            return
        if self.task is None:
            self.task = self.progress.add_task("train", total=event["steps"], facts="")
        self.progress.update(self.task, completed=event["step"], facts=_facts(event))


def told(event: dict[str, Any]) -> str | None:
    """Returns an event as a line of text; None for an event that is not shown."""
    teller = TELLERS.get(event["event"])
    return teller(event) if teller else None


def _stage(event: dict[str, Any]) -> str | None:
    if event["status"] == "started":
        return str(event["stage"])
    if event["status"] == "kept":
        return f"{event['stage']}\n  already done"
    return f"  done in {event['seconds']:.1f} s" if event["status"] == "done" else None


def _facts(event: dict[str, Any]) -> str:
    rates = f"{event['tokens_per_s']:,.0f} tokens/s, {event['trained_tokens_per_s']:,.0f} trained tokens/s"
    return f"loss {event['loss']:.4f}  {rates}"


def _warning(event: dict[str, Any]) -> str:
    message: str = event["message"]
    return message if "warning:" in message else f"warning: {message}"


def _restarted(event: dict[str, Any]) -> str:
    return f"warning: {event['reason']}; restarting all processes (restart {event['restart']} of {event['of']})"


def _joining(event: dict[str, Any]) -> str:
    what = "waits for node 0 to prepare the data" if event["status"] == "waiting" else "trains"
    return f"node {event['node']} of {event['nodes']} {what}"


def _launched(event: dict[str, Any]) -> str:
    nodes = f" on {event['nodes']} nodes" if event["nodes"] > 1 else ""
    return f"  {event['processes'] * event['nodes']} processes{nodes}, {event['strategy']} over {event['backend']}"


def _resumed(event: dict[str, Any]) -> str:
    return f"  resuming from step {event['step']}" if event["step"] else "  no checkpoint yet: starting at step 0"


def _sizing(event: dict[str, Any]) -> str:
    tried = f"  tried train.batch_size {event['batch_size']}: "
    if "peak" not in event:
        return f"{tried}out of memory"
    verdict = "" if event["fits"] else ", too close"
    return f"{tried}{byte_count(event['peak'])} of {byte_count(event['room'])}{verdict}"


def _sized(event: dict[str, Any]) -> str:
    chosen = f"  chosen: {_split(event)}, {event['rows']} rows per step; measured {byte_count(event['peak'])}"
    return f"{chosen} of {byte_count(event['room'])}, of which {event['margin']:.0%} stays free"


def _shrunk(event: dict[str, Any]) -> str:
    if event["while"] == "evaluation":
        return f"  out of memory in the evaluation; trying again with train.eval_batch_size {event['eval_batch_size']}"
    return f"  out of memory; trying again with {_split(event)}, the same number of rows per step"


def _split(event: dict[str, Any]) -> str:
    return f"train.batch_size {event['batch_size']} and train.grad_accum {event['grad_accum']}"


PREPARE = {
    (True, False): "  another process is preparing the same data; waiting for it",
    (False, True): "  from the cache",
}

TELLERS: dict[str, Callable[[dict[str, Any]], str | None]] = {
    "stage": _stage,
    "step": lambda event: f"  step {event['step']}/{event['steps']}  {_facts(event)}",
    "eval": lambda event: f"  step {event['step']}: validation loss {event['loss']:.4f}",
    "warning": _warning,
    "resumed": _resumed,
    "restarted": _restarted,
    "rehearsed_stop": lambda event: f"  stopped after step {event['step']} on purpose; resuming",
    "joining": _joining,
    "launched": _launched,
    "using": lambda event: (
        f"  attention: {event['attention']}; precision: {event['precision']}; optimizer: {event['optimizer']}"
    ),
    "stopped_early": lambda event: (
        f"  stopped at step {event['step']}: the validation loss was lowest at step {event['best_step']}"
    ),
    "best": lambda event: f"  the model is the checkpoint of step {event['step']}, validation loss {event['loss']:.4f}",
    "prepare": lambda event: PREPARE.get((event.get("waiting", False), event.get("cached", False))),
    "prepared": lambda event: f"  {event['split']}: {event['rows']} rows read",
    "sizing": _sizing,
    "sized": _sized,
    "shrunk": _shrunk,
    "evaluating": lambda event: f"  evaluating the {event['which']} model",
}
