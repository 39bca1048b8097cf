"""Worker processes: a stage's heavy work runs in a process of its own, and reports to its parent in events."""

import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections import deque
from pathlib import Path
from typing import Any

from sftrun.errors import Place, Problem, UserError
from sftrun.rundir import RunDir
from sftrun.types import Emit

TAIL = 15
GRACE = 10  # seconds that a worker has to end after an interrupt


class WorkerError(Exception):
    """A worker that ended by a bug of ours; the text is its traceback."""


def work(target: str, run: RunDir, emit: Emit) -> None:
    """Calls `target` (`"package.module:function"`) in a new process as `function(recipe, run, emit)`.

    Raises UserError for what the user can fix, running out of memory among it, and WorkerError for the rest.
    """
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "sftrun.launch", target, str(run.path), str(writing)]
    with run.log.open("ab") as log, os.fdopen(reading, encoding="utf-8") as events:
        process = subprocess.Popen(
            command, pass_fds=[writing], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        os.close(writing)
        try:
            failure = _follow(events, emit)
            code = process.wait()
        except BaseException:
            _stop(process)
            raise
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


def _explained(failure: dict[str, Any] | None, code: int, run: RunDir) -> Exception:
    if failure and failure["kind"] == "user":
        return UserError([_problem(each) for each in failure["problems"]])
    if failure and failure["kind"] == "memory":
        return UserError(f"out of memory: {failure['message']}", hint=MEMORY_ADVICE)
    if failure:
        return WorkerError(failure["traceback"])
    if code == -signal.SIGKILL:
        return UserError("the worker was killed, most often because memory ran out", hint=MEMORY_ADVICE)
    return WorkerError(f"the worker ended with code {code}; the end of {run.log}:\n{_tail(run.log)}")


MEMORY_ADVICE = (
    "lower train.batch_size and raise train.grad_accum by the same factor, lower model.max_seq_len, "
    "set train.gradient_checkpointing: true, or use tuning.mode: lora"
)


def _problem(data: dict[str, Any]) -> Problem:
    where = Place(**data["where"]) if data["where"] else None
    path = tuple(data["path"]) if data["path"] else None
    return Problem(data["message"], where, path, data["hint"], data["severity"])


def _tail(file: Path) -> str:
    with file.open(encoding="utf-8", errors="replace") as lines:
        return "".join(deque(lines, TAIL))


def main() -> None:
    """What a worker process runs."""
    import msgspec

    target, path, descriptor = sys.argv[1:]
    pipe = os.fdopen(int(descriptor), "w", encoding="utf-8", buffering=1)

    def emit(event: dict[str, Any]) -> None:
        # a parent that is gone ends the worker here, by BrokenPipeError
        pipe.write(json.dumps(event) + "\n")

    try:
        _call(target, Path(path), emit)
    except UserError as error:
        problems = [msgspec.to_builtins(problem) for problem in error.problems]
        emit({"event": "failure", "kind": "user", "problems": problems})
        sys.exit(1)
    except BrokenPipeError:
        os._exit(1)
    except Exception as error:
        if "out of memory" in str(error).lower() or isinstance(error, MemoryError):
            emit({"event": "failure", "kind": "memory", "message": str(error).splitlines()[0]})
        else:
            emit({"event": "failure", "kind": "bug", "traceback": traceback.format_exc()})
        sys.exit(1)


def _call(target: str, path: Path, emit: Emit) -> None:
    from sftrun.recipe.resolved import from_resolved

    run = RunDir(path)
    recipe = from_resolved((path / "resolved.yaml").read_text("utf-8"))
    module, _, name = target.partition(":")
    getattr(importlib.import_module(module), name)(recipe, run, emit)


if __name__ == "__main__":
    main()
