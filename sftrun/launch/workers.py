"""Worker processes: run the heavy work of a stage in a new process, which sends events to its parent.

If several processes train, the worker is the agent that starts the ranks (agent.py). A rank is a worker, too.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TextIO

import msgspec

from sftrun import events, gpus, scrub
from sftrun.errors import UserError
from sftrun.events import Failure
from sftrun.kinds import Emit
from sftrun.launch import failures, topology
from sftrun.launch.signals import SIGNALS
from sftrun.launch.topology import RANK_VARIABLES, Node
from sftrun.recipe.model import Recipe
from sftrun.runs.directory import RunDir

GRACE = 10  # seconds from SIGTERM to SIGKILL for a worker whose parent fails


class Ranks(msgspec.Struct, frozen=True):
    """The ranks to start on this node: `processes` on each node, with up to `restarts` restarts after a failure.

    `recipe` is the resolved recipe of this command. It must equal the one in the run directory.
    """

    processes: int = 1
    nodes: int = 1
    restarts: int = 0
    node: Node = Node()
    recipe: str | None = None


def plan_ranks(recipe: Recipe, node: Node | None, resolved: str | None = None) -> Ranks | None:
    """Returns the ranks to start on this node; None for a single process without restarts.

    `resolved` is the resolved recipe of a node other than node 0.
    """
    wanted = recipe.launch
    if topology.world_size(recipe) == 1 and not wanted.restarts:
        return None
    return Ranks(topology.local_world_size(recipe), wanted.nodes, wanted.restarts, node or Node(), resolved)


def run_in_worker(target: str, run: RunDir, emit: Emit, ranks: Ranks | None = None) -> None:
    """Calls `target` (`"package.module:function"`) in a new process as `function(recipe, run, emit)`.

    With `ranks`, calls it in each rank, and passes on the events of rank 0. Raises UserError for anything that the
    user can fix, running out of memory included; Interrupted after a signal; WorkerError for a bug.
    """
    reading, writing = os.pipe()
    lifeline, parent_end = os.pipe()  # the worker ends when the parent's end closes: it never outlives its parent
    command = [sys.executable, "-m", "sftrun.launch.workers", target, str(run.path), str(writing), str(lifeline)]
    if ranks:
        command[2] = "sftrun.launch.agent"
        command += [msgspec.json.encode(each).decode() for each in (ranks, run.locks)]
    passed = [writing, lifeline, *run.locks]
    environment = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    environment[gpus.VARIABLE] = gpus.encode_for_workers()
    oom_kills = failures.count_oom_kills()
    with SIGNALS.handling(), run.log.open("ab") as log, open_events(reading) as lines:
        process = subprocess.Popen(
            command,
            pass_fds=passed,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
        os.close(writing)
        os.close(lifeline)
        SIGNALS.process = process
        try:
            failure = _read_events(lines, emit)
            code = process.wait()
        except BaseException:
            _stop(process)
            raise
        finally:
            SIGNALS.process = None
            os.close(parent_end)
        if code != failures.DONE or failure:
            raise failures.explain(failure, code, oom_kills, run)


def _read_events(lines: Iterable[str], emit: Emit) -> Failure | None:
    """Passes on the events of a worker until it closes its pipe; returns the event `failure`, if there was one."""
    failure = None
    for line in lines:
        for event in read_events(line):
            if isinstance(event, Failure):
                failure = event
            else:
                emit(event)
    return failure


def open_events(reading: int) -> TextIO:
    """Opens the pipe of a worker for reading; a kill may cut a line in the middle of a character."""
    return os.fdopen(reading, encoding="utf-8", errors="replace")


def read_events(line: str) -> Iterator[events.Event]:
    """Yields the event of a line that a worker wrote, and a Malformed event if something is wrong with it.

    A line that a kill cut short yields nothing.
    """
    try:
        data = json.loads(line)
    except ValueError:
        return
    event, bad = events.decode(data)
    yield event
    if bad is not None and bad is not event:
        yield bad


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main() -> None:
    """Runs a worker process."""
    target, path, descriptor, lifeline = sys.argv[1:]
    serve(lambda emit: _call_target(target, Path(path), emit), int(descriptor), int(lifeline))


class Reported(Exception):  # noqa: N818 (its failure is an event)
    """A failure of a job that the job has sent as an event."""


def serve(job: Callable[[Emit], None], descriptor: int, lifeline: int) -> None:
    """Calls `job` and sends its events and its failure through a pipe; the process ends if the lifeline is cut."""
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
    os.set_inheritable(descriptor, False)
    sys.stdout, sys.stderr = scrub.Hiding(sys.stdout), scrub.Hiding(sys.stderr)
    pipe = os.fdopen(descriptor, "w", encoding="utf-8", buffering=1)
    oom_kills = failures.count_oom_kills()

    def emit(event: events.Event) -> None:
        line = scrub.hide(events.to_json(event)) + "\n"
        try:
            pipe.write(line)
        except BrokenPipeError:  # the parent is gone
            os._exit(1)

    try:
        job(emit)
    except KeyboardInterrupt:  # Interrupted, or SIGINT to every process of a job
        sys.exit(failures.INTERRUPTED)
    except Reported:
        sys.exit(1)
    except BaseException as error:  # code of a plugin may call sys.exit(0), which is no success
        traceback.print_exc()  # into run.log; the parent shows one message
        if isinstance(error, UserError):
            emit(Failure(kind="user", problems=list(error.problems)))
        else:
            emit(failures.describe(error, oom_kills))
        sys.exit(1)
    sys.exit(failures.DONE)


def _end_with_parent(lifeline: int) -> None:
    os.set_inheritable(lifeline, False)
    os.read(lifeline, 1)
    os._exit(1)


def _call_target(target: str, path: Path, emit: Emit) -> None:
    run = RunDir(path)
    module, _, name = target.partition(":")
    getattr(importlib.import_module(module), name)(run.recipe(), run, emit)


if __name__ == "__main__":
    main()
