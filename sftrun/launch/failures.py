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

TAIL = 15  # lines of run.log that an error shows
INTERRUPTED = 130  # exit code of a worker that a signal stopped


class WorkerError(Exception):
    """A bug of sftrun in a worker; the text is its traceback."""


def explain(failure: Failure | None, code: int, run: RunDir) -> BaseException:
    """Returns the error that a failed worker process stands for; `code` is its exit code."""
    if failure and failure.kind != "ended":
        return _explain_report(failure, run)
    if failure is None and (SIGNALS.received or code == INTERRUPTED):
        return Interrupted()
    if failure:
        code = failure.code  # the exit code of the rank that ended first
    if code == -signal.SIGKILL:
        return OutOfMemory(KILLED, hint=MEMORY_ADVICE + suggest_resume_if_killed(KILLED, run))
    return WorkerError(f"the worker ended with code {code}; the end of {run.log}:\n{_read_tail(run.log)}")


def _explain_report(failure: Failure, run: RunDir) -> BaseException:
    """Returns the exception for a failure that the worker itself reported."""
    if failure.kind == "user":
        return UserError(failure.problems)
    if failure.kind == "memory":
        return OutOfMemory(f"out of memory: {failure.message}", hint=MEMORY_ADVICE)
    if failure.kind == "disk":
        return UserError(failure.message, hint=f"{failure.hint}, then {_suggest_resume(run)}")
    if failure.kind == "lost":
        hint = f"run.log of each node may say why; {_suggest_resume(run)}"
        return UserError(f"the training processes lost each other: {failure.message}", hint=hint)
    if failure.kind == "gone":
        hint = f"its command or its machine has ended; its run.log may say why; on all nodes, {_suggest_resume(run)}"
        return UserError(failure.message, hint=hint)
    return WorkerError(failure.traceback)


KILLED = "the worker was killed, most often because memory ran out"


def suggest_resume_if_killed(message: str, run: RunDir) -> str:
    """Returns the end of a hint about memory: how to resume, if a person or a time limit killed the worker."""
    return f"; if it was something else, {_suggest_resume(run)}" if message == KILLED else ""


def _suggest_resume(run: RunDir) -> str:
    return f"resume from the last checkpoint: sftrun resume {files.shell_path(run.path)}"


MEMORY_ADVICE = (
    "lower train.batch_size and raise train.grad_accum by the same factor, lower model.max_seq_len, "
    "set train.gradient_checkpointing: true, or use tuning.mode: lora"
)


def _read_tail(file: Path) -> str:
    with file.open(encoding="utf-8", errors="replace") as lines:
        return "".join(deque(lines, TAIL))


def describe(error: Exception) -> Failure:
    """Returns the failure that an exception of a worker stands for."""
    if is_out_of_memory(error):
        return Failure(kind="memory", message=(str(error) or "of the machine").splitlines()[0])
    if hint := files.disk_advice(error):
        return Failure(kind="disk", message=files.first_line(error), hint=hint)
    if "WORLD_SIZE" in os.environ and any(words in str(error) for words in CONNECTION_LOST):
        return Failure(kind="lost", message=str(error).splitlines()[0])
    return Failure(kind="bug", traceback=traceback.format_exc())


OUT_OF_MEMORY = (  # lower-case parts of messages of torch, CUDA and the system
    *("out of memory", "can't allocate memory", "cannot allocate memory", "cublas_status_alloc_failed"),
    "is killed by signal: killed",  # a data loader process
)


def is_out_of_memory(error: BaseException) -> bool:
    """Returns True if an exception says that memory ran out."""
    message = str(error).lower()
    return isinstance(error, MemoryError) or any(words in message for words in OUT_OF_MEMORY)


# Parts of messages of gloo, NCCL and torch's store if another rank is gone. The other rank reports the cause.
CONNECTION_LOST = (
    *("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket"),
    "recvValue",
)
