"""Worker processes: a stage's heavy work runs in a process of its own, and reports to its parent in events.

Training may be of many processes: then the worker is the one that starts them (see elastic.py), and each of them is a
worker in turn.
"""

import contextlib
import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from sftrun import disk
from sftrun.errors import Interrupted, OutOfMemory, Place, Problem, UserError
from sftrun.rundir import RunDir
from sftrun.types import Emit
from sftrun.world import VARIABLES, Node

TAIL = 15
GRACE = 10  # seconds that a worker has to end where its parent fails
INTERRUPTED = 130
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ECHO = 2.0  # seconds within which SIGTERM is the same one again


class WorkerError(Exception):
    """A worker that ended by a bug of ours; the text is its traceback."""


class Signals:
    """What SIGINT, SIGTERM and SIGHUP do: the first one asks the worker to end, the second one ends it."""

    def __init__(self) -> None:
        self.asked = 0
        self.first, self.since = 0, 0.0  # the first one that came, and when the last one did
        self.depth = 0
        self.process: subprocess.Popen[bytes] | None = None

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """While it lasts, a signal ends the run in order; outside the main thread, signals are someone else's."""
        if self.depth or threading.current_thread() is not threading.main_thread():
            yield
            return
        self.asked, self.depth = 0, 1
        detached = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # by nohup
        heard = STOPPING[:2] if detached else STOPPING
        before = {number: signal.signal(number, self._hear) for number in heard}
        try:
            yield
        finally:
            self.depth = 0
            for number, handler in before.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """Raises Interrupted where a signal came while a worker was at work."""
        if self.asked:
            raise Interrupted

    def _hear(self, number: int, _frame: object) -> None:
        if self.asked and self._echoed(number):
            return
        self.asked, self.since = self.asked + 1, time.monotonic()
        self.first = number if self.asked == 1 else self.first
        if self.process is None:
            _say(b"\n")
            raise Interrupted
        if self.asked == 1:
            _say(b"\nstopping as soon as all is safe; once more stops at once\n")
            self.process.terminate()
        else:
            self.process.kill()

    def _echoed(self, number: int) -> bool:
        """Whether it is the first signal once more: the shell and the kernel both tell of a terminal that is closed,
        and `timeout` tells its process and then the group of it."""
        soon = time.monotonic() - self.since < ECHO
        return number == signal.SIGHUP or (number == self.first == signal.SIGTERM and soon)


def _say(text: bytes) -> None:
    # not by print, which may be interrupted in the middle of a line of its own
    try:
        os.write(2, text)
    except OSError:  # the terminal is closed: what is said from now on must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


SIGNALS = Signals()


class Ranks(msgspec.Struct, frozen=True):
    """Processes that do one work together: so many on each of the nodes, started again so often where one fails.

    `recipe` is the resolved recipe as this command has it, which must be the one in the run directory.
    """

    processes: int = 1
    nodes: int = 1
    restarts: int = 0
    node: Node = Node()
    recipe: str | None = None


def work(target: str, run: RunDir, emit: Emit, ranks: Ranks | None = None) -> None:
    """Calls `target` (`"package.module:function"`) in a new process as `function(recipe, run, emit)`.

    With `ranks`, in so many new processes; of what they emit, the first one's events are passed on. Raises UserError
    for what the user can fix, running out of memory among it, Interrupted after a signal, and WorkerError for the rest.
    """
    reading, writing = os.pipe()
    lifeline, held = os.pipe()  # the worker ends when this end is closed: it never outlives its parent
    command = [sys.executable, "-m", "sftrun.launch", target, str(run.path), str(writing), str(lifeline)]
    if ranks:
        command[2] = "sftrun.elastic"
        command += [msgspec.json.encode(each).decode() for each in (ranks, run.locks)]
    passed = [writing, lifeline, *run.locks]
    alone = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    with SIGNALS.heard(), run.log.open("ab") as log, os.fdopen(reading, encoding="utf-8") as events:
        process = subprocess.Popen(
            command,
            pass_fds=passed,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=alone,
            start_new_session=True,
        )
        os.close(writing)
        os.close(lifeline)
        SIGNALS.process = process
        try:
            failure = _follow(events, emit)
            code = process.wait()
        except BaseException:
            _stop(process)
            raise
        finally:
            SIGNALS.process = None
            os.close(held)
        if code or failure:
            raise _explained(failure, code, run)


def _follow(events: Any, emit: Emit) -> dict[str, Any] | None:
    failure = None
    for line in events:
        event = json.loads(line)
        if event["event"] == "failure":
            failure = event
        else:
            emit(event)
    return failure


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _explained(failure: dict[str, Any] | None, code: int, run: RunDir) -> BaseException:
    if failure and failure["kind"] != "ended":
        return _said(failure, run)
    if failure is None and (SIGNALS.asked or code == INTERRUPTED):
        return Interrupted()
    if failure:
        code = failure["code"]  # of the one among many that ended first
    if code == -signal.SIGKILL:
        return OutOfMemory(KILLED, hint=MEMORY_ADVICE + if_killed(KILLED, run))
    return WorkerError(f"the worker ended with code {code}; the end of {run.log}:\n{_tail(run.log)}")


def _said(failure: dict[str, Any], run: RunDir) -> BaseException:
    """What a worker has said of its own failure."""
    if failure["kind"] == "user":
        return UserError([_problem(each) for each in failure["problems"]])
    if failure["kind"] == "memory":
        return OutOfMemory(f"out of memory: {failure['message']}", hint=MEMORY_ADVICE)
    if failure["kind"] == "disk":
        return UserError(failure["message"], hint=f"{failure['hint']}, then {_going_on(run)}")
    if failure["kind"] == "lost":
        hint = f"run.log of each node may say why; {_going_on(run)}"
        return UserError(f"the training processes lost each other: {failure['message']}", hint=hint)
    if failure["kind"] == "gone":
        hint = f"its command or its machine has ended; its run.log may say why; on all nodes, {_going_on(run)}"
        return UserError(failure["message"], hint=hint)
    return WorkerError(failure["traceback"])


KILLED = "the worker was killed, most often because memory ran out"


def if_killed(said: str, run: RunDir) -> str:
    """How to go on where a worker was killed by someone, after what to change if it was for its memory."""
    return f"; if it was something else, {_going_on(run)}" if said == KILLED else ""


def _going_on(run: RunDir) -> str:
    return f"sftrun resume {shown(run.path)} goes on where it was whole"


MEMORY_ADVICE = (
    "lower train.batch_size and raise train.grad_accum by the same factor, lower model.max_seq_len, "
    "set train.gradient_checkpointing: true, or use tuning.mode: lora"
)


def shown(path: Path) -> str:
    """A path as one would type it."""
    with contextlib.suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return shlex.quote(str(path))


def _problem(data: dict[str, Any]) -> Problem:
    where = Place(**data["where"]) if data["where"] else None
    path = tuple(data["path"]) if data["path"] else None
    return Problem(data["message"], where, path, data["hint"], data["severity"])


def _tail(file: Path) -> str:
    with file.open(encoding="utf-8", errors="replace") as lines:
        return "".join(deque(lines, TAIL))


def main() -> None:
    """What a worker process runs."""
    target, path, descriptor, lifeline = sys.argv[1:]
    serve(lambda emit: _call(target, Path(path), emit), int(descriptor), int(lifeline))


def serve(job: Callable[[Emit], None], descriptor: int, lifeline: int) -> None:
    """Does the work of a worker process, and says through a pipe how it went; ends when the lifeline is cut."""
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
    os.set_inheritable(descriptor, False)
    pipe = os.fdopen(descriptor, "w", encoding="utf-8", buffering=1)

    def emit(event: dict[str, Any]) -> None:
        # a parent that is gone ends the worker here, by BrokenPipeError
        pipe.write(json.dumps(event) + "\n")

    try:
        job(emit)
    except UserError as error:
        problems = [msgspec.to_builtins(problem) for problem in error.problems]
        emit({"event": "failure", "kind": "user", "problems": problems})
        sys.exit(1)
    except Interrupted:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        os._exit(1)
    except Exception as error:
        emit({"event": "failure", **_failure(error)})
        sys.exit(1)


def _end_with_parent(lifeline: int) -> None:
    os.set_inheritable(lifeline, False)
    os.read(lifeline, 1)
    os._exit(1)


def _failure(error: Exception) -> dict[str, Any]:
    if no_memory(error):
        return {"kind": "memory", "message": (str(error) or "of the machine").splitlines()[0]}
    if hint := disk.advice(error):
        return {"kind": "disk", "message": disk.said(error), "hint": hint}
    if "WORLD_SIZE" in os.environ and any(words in str(error) for words in LOST):
        return {"kind": "lost", "message": str(error).splitlines()[0]}
    return {"kind": "bug", "traceback": traceback.format_exc()}


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


def _call(target: str, path: Path, emit: Emit) -> None:
    from sftrun.recipe.resolved import from_resolved

    run = RunDir(path)
    recipe = from_resolved((path / "resolved.yaml").read_text("utf-8"))
    module, _, name = target.partition(":")
    getattr(importlib.import_module(module), name)(recipe, run, emit)


if __name__ == "__main__":
    main()
