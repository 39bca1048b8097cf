"""Failures of worker processes: classified in the worker, explained in its parent."""

import os
import signal
import traceback
from collections import deque
from pathlib import Path

from sftrun import files
from sftrun.errors import Interrupted, OutOfMemory, UserError
from sftrun.events import Failure
from sftrun.launch.signals import SIGNALS
from sftrun.runs.directory import RunDir

TAIL = 15
INTERRUPTED = 130


class WorkerError(Exception):
    """A worker that ended by a bug of ours; the text is its traceback."""


def explain(failure: Failure | None, code: int, run: RunDir) -> BaseException:
    """Returns the error that a failed worker process stands for; `code` is its exit code."""
    if failure and failure.kind != "ended":
        return _reported(failure, run)
    if failure is None and (SIGNALS.asked or code == INTERRUPTED):
        return Interrupted()
    if failure:
        code = failure.code  # of the one among many that ended first
    if code == -signal.SIGKILL:
        return OutOfMemory(KILLED, hint=MEMORY_ADVICE + if_killed(KILLED, run))
    return WorkerError(f"the worker ended with code {code}; the end of {run.log}:\n{_tail(run.log)}")


def _reported(failure: Failure, run: RunDir) -> BaseException:
    """What a worker has said of its own failure."""
    if failure.kind == "user":
        return UserError(failure.problems)
    if failure.kind == "memory":
        return OutOfMemory(f"out of memory: {failure.message}", hint=MEMORY_ADVICE)
    if failure.kind == "disk":
        return UserError(failure.message, hint=f"{failure.hint}, then {_going_on(run)}")
    if failure.kind == "lost":
        hint = f"run.log of each node may say why; {_going_on(run)}"
        return UserError(f"the training processes lost each other: {failure.message}", hint=hint)
    if failure.kind == "gone":
        hint = f"its command or its machine has ended; its run.log may say why; on all nodes, {_going_on(run)}"
        return UserError(failure.message, hint=hint)
    return WorkerError(failure.traceback)


KILLED = "the worker was killed, most often because memory ran out"


def if_killed(said: str, run: RunDir) -> str:
    """How to go on where a worker was killed by someone, after what to change if it was for its memory."""
    return f"; if it was something else, {_going_on(run)}" if said == KILLED else ""


def _going_on(run: RunDir) -> str:
    return f"sftrun resume {files.shell_path(run.path)} goes on where it was whole"


MEMORY_ADVICE = (
    "lower train.batch_size and raise train.grad_accum by the same factor, lower model.max_seq_len, "
    "set train.gradient_checkpointing: true, or use tuning.mode: lora"
)


def _tail(file: Path) -> str:
    with file.open(encoding="utf-8", errors="replace") as lines:
        return "".join(deque(lines, TAIL))


def describe(error: Exception) -> Failure:
    """Returns the failure that an exception of a worker stands for."""
    if no_memory(error):
        return Failure(kind="memory", message=(str(error) or "of the machine").splitlines()[0])
    if hint := files.disk_advice(error):
        return Failure(kind="disk", message=files.first_line(error), hint=hint)
    if "WORLD_SIZE" in os.environ and any(words in str(error) for words in LOST):
        return Failure(kind="lost", message=str(error).splitlines()[0])
    return Failure(kind="bug", traceback=traceback.format_exc())


NO_MEMORY = (  # what torch, CUDA and the system say, in lower case; the last one of a process that loads batches
    *("out of memory", "can't allocate memory", "cannot allocate memory", "cublas_status_alloc_failed"),
    "is killed by signal: killed",
)


def no_memory(error: BaseException) -> bool:
    """Whether memory has run out."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(words in said for words in NO_MEMORY)


# What gloo, NCCL and torch's store say where another process has gone: never the cause, which that one has said.
LOST = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket", "recvValue")
