"""Failures of worker processes: classified in the worker, explained in its parent."""

import contextlib
import os
import signal
import traceback
from collections import deque
from pathlib import Path
from typing import Literal

from sftrun import files
from sftrun.errors import Interrupted, OutOfMemory, Problem, UserError
from sftrun.events import Failure
from sftrun.launch.signals import SIGNALS
from sftrun.runs.directory import RunDir

TAIL = 15  # lines of run.log that an error shows
DONE = 64  # exit code of a worker whose work is done: code of a plugin may end the process with 0
INTERRUPTED = 130  # exit code of a worker that a signal stopped


class WorkerError(Exception):
    """A bug of sftrun in a worker; the text is its traceback."""


def explain(failure: Failure | None, code: int, oom_kills: int | None, run: RunDir) -> BaseException:
    """Returns the error that a failed worker process stands for.

    `code` is its exit code, and `oom_kills` the count of kills for memory before it started.
    """
    if failure is None and (SIGNALS.received or code == INTERRUPTED):
        return Interrupted()
    failure = failure or describe_exit(code, oom_kills)
    if failure.kind != "ended":
        return _explain_report(failure, run)
    if failure.code == -signal.SIGKILL:
        return OutOfMemory(KILLED, hint=MEMORY_ADVICE + suggest_resume_if_killed(KILLED, run))
    return WorkerError(f"the worker ended with code {failure.code}; the end of {run.log}:\n{_read_tail(run.log)}")


NOT_FOR_MEMORY = "was killed with SIGKILL, and not by the system for lack of memory"
OOM_KILL_FILES = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))  # of the container, else of the machine


def count_oom_kills() -> int | None:
    """Returns how many processes the kernel has killed because memory ran out; None if it does not tell."""
    for file in OOM_KILL_FILES:
        with contextlib.suppress(OSError, ValueError):
            counts = dict(line.split() for line in file.read_text().splitlines())
            if "oom_kill" in counts:
                return int(counts["oom_kill"])
    return None


def describe_exit(code: int, oom_kills: int | None) -> Failure:
    """Returns the failure of a process that ended without a word.

    The kernel counts whom it kills for memory. If its count has not grown since `oom_kills`, someone else has sent
    SIGKILL: a person, a batch system, a program that watches the memory.
    """
    now = count_oom_kills()
    if code != -signal.SIGKILL or oom_kills is None or now is None:
        return Failure(kind="ended", code=code)
    if now > oom_kills:
        return Failure(kind="memory", message="the system killed the worker", code=code)
    return Failure(kind="killed", message=f"the worker {NOT_FOR_MEMORY}", code=code)


def _explain_report(failure: Failure, run: RunDir) -> BaseException:
    """Returns the exception for a failure that the worker itself reported, or whose cause its end shows."""
    if failure.kind == "user":
        return UserError(failure.problems)
    if failure.kind == "memory":
        return OutOfMemory(f"out of memory: {failure.message}", hint=MEMORY_ADVICE)
    if failure.kind == "bug":
        return WorkerError(failure.traceback)
    message, hint = _describe_outside_cause(failure)
    return UserError(message, hint=f"{hint} {_suggest_resume(run)}")


def _describe_outside_cause(failure: Failure) -> tuple[str, str]:
    """Returns the message of a failure that the recipe did not cause, and what to do before the run is resumed."""
    if failure.kind == "disk":
        return failure.message, f"{failure.hint}, then"
    if failure.kind == "killed":
        return failure.message, "a person, a time limit or a program that guards the memory may have done it;"
    if failure.kind == "lost":
        return f"the training processes lost each other: {failure.message}", "run.log of each node may say why;"
    return failure.message, "its command or its machine has ended; its run.log may say why; on all nodes,"


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


def describe(error: BaseException, oom_kills: int | None) -> Failure:
    """Returns the failure that an exception of a worker stands for; `oom_kills` as for `explain`."""
    if LOADER_KILLED in str(error).lower() and count_oom_kills() == oom_kills is not None:
        return Failure(kind="killed", message=f"a data loader {NOT_FOR_MEMORY}", code=-signal.SIGKILL)
    if is_out_of_memory(error):
        return Failure(kind="memory", message=(str(error) or "of the machine").splitlines()[0])
    if hint := files.disk_advice(error):
        return Failure(kind="disk", message=files.first_line(error), hint=hint)
    if "WORLD_SIZE" in os.environ and (kind := _classify_communication(error)):
        text = " ".join(str(error).split())  # NCCL names the cause in its last line
        problem = Problem(f"the training processes cannot communicate: {text}", hint=COMMUNICATION_HINT)
        return Failure(kind=kind, message=files.first_line(error), problems=[problem] if kind == "user" else [])
    return Failure(kind="bug", traceback=traceback.format_exc())


LOADER_KILLED = "is killed by signal: killed"  # torch's message if a process that loads data gets SIGKILL
OUT_OF_MEMORY = (  # lower-case parts of messages of torch, CUDA and the system
    *("out of memory", "can't allocate memory", "cannot allocate memory", "cublas_status_alloc_failed"),
    LOADER_KILLED,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Returns True if an exception says that memory ran out."""
    message = str(error).lower()
    return isinstance(error, MemoryError) or any(words in message for words in OUT_OF_MEMORY)


# Lower-case parts of messages of NCCL and gloo for a mistake in the set-up, which no restart mends.
MISCONFIGURED = (
    *("duplicate gpu", "invalid usage", "ncclinvalidusage", "ncclinvalidargument"),
    *("unable to find interface", "unable to find address", "no socket interface"),
)
# Parts of messages of NCCL and gloo if another rank, or the network, is gone. The other rank reports the cause.
CONNECTION_LOST = (
    *("remote process", "remote error", "ncclremoteerror", "system error", "ncclsystemerror", "timed out", "timeout"),
    *("connection closed", "connection reset", "connection refused", "broken pipe", "socket", "recvvalue", "aborted"),
)
COMMUNICATION_HINT = (
    "each process needs its own GPU (CUDA_VISIBLE_DEVICES) and a network interface that the others reach "
    "(NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME); run.log of each node has the rest"
)


def _classify_communication(error: BaseException) -> Literal["lost", "user"] | None:
    """Returns what an error of torch's communication between ranks stands for; None for any other error."""
    types = {each.__name__ for each in type(error).__mro__}
    text = str(error).lower()
    if not types & {"DistError", "RuntimeError"} or not (types & {"DistError"} or "gloo" in text or "nccl" in text):
        return None
    if any(words in text for words in MISCONFIGURED):
        return "user"
    is_lost = types & {"DistNetworkError", "DistStoreError"} or any(words in text for words in CONNECTION_LOST)
    return "lost" if is_lost else None
