"""The worker process that starts many others: torch's elastic agent, with processes and a meeting place of ours.

Processes are started here and not by torch's own agent, which hands on no pipes: each rank reports as any worker does,
and none outlives this process. Of what the ranks say, the first one's events and the cause of a failure reach the
parent. Nodes keep the numbers that they were given, as the first one owns the run directory.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import (
    RunResult,
    SimpleElasticAgent,
    Worker,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from sftrun.errors import Interrupted, UserError
from sftrun.events import Event, Failure, Restarted
from sftrun.kinds import Emit
from sftrun.launch import workers
from sftrun.launch.failures import INTERRUPTED
from sftrun.launch.rendezvous import Meeting
from sftrun.launch.workers import Ranks

EVERY = 0.05  # seconds between two looks at the ranks
SETTLE = 15.0  # seconds to wait for the cause of a lost connection to be told by the process that has it
DRAIN = 10.0  # seconds to hear the last words of one that was killed: what loads its data holds the pipe for a while
AGAIN = ("bug", "ended", "lost")  # kinds of failures that another attempt may not have


class Rank:
    """One of the processes, with what it has said; only the first one's events are passed on."""

    def __init__(self, worker: Worker, command: list[str], locks: list[int], env: dict[str, str], emit: Emit) -> None:
        self.number, self.emit = worker.global_rank, emit
        self.failure: Failure | None = None  # as it said, or as it ended
        reading, writing = os.pipe()
        lifeline, self.held = os.pipe()
        command = [*command, str(writing), str(lifeline)]
        self.process = subprocess.Popen(
            command, pass_fds=[writing, lifeline, *locks], stdin=subprocess.DEVNULL, env={**os.environ, **env}
        )
        os.close(writing)
        os.close(lifeline)
        self.listening = threading.Thread(target=self._listen, args=(reading,), daemon=True)
        self.listening.start()

    def _listen(self, reading: int) -> None:
        with os.fdopen(reading, encoding="utf-8") as lines:
            for line in lines:
                for event in workers.read_events(line):
                    self._hear(event)

    def _hear(self, event: Event) -> None:
        if isinstance(event, Failure):
            self.failure = msgspec.structs.replace(event, time=time.monotonic(), rank=self.number)
        elif self.number == 0:
            self.emit(event)

    def code(self) -> int | None:
        """The exit code, when all has been heard; None while it is at work."""
        code = self.process.poll()
        if code is not None:
            self.listening.join(DRAIN)
        return code

    def end(self) -> None:
        """Kills it, where it is still at work."""
        self.process.kill()
        self.process.wait()
        self.listening.join(DRAIN)
        os.close(self.held)

    def cause(self) -> Failure | None:
        """Why it has failed, if it has: what it said, or with what code it ended."""
        code = self.code()
        if code in (None, 0, INTERRUPTED):
            return None
        if self.failure is None:
            self._hear(Failure(kind="ended", code=code or 0))
        return self.failure


class Agent(SimpleElasticAgent):
    """torch's agent: it numbers the ranks of all nodes, and starts them again where any of them fails."""

    def __init__(self, spec: WorkerSpec, meeting: Meeting, command: list[str], locks: list[int], emit: Emit) -> None:
        super().__init__(spec)
        self.meeting, self.command, self.locks, self.emit = meeting, command, locks, emit
        self.ranks: list[Rank] = []
        self.asked = False
        self.failure: Failure | None = None

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self.failure = None
        for each in worker_group.workers:
            env = self._environment(worker_group, each)
            self.ranks.append(Rank(each, self.command, self.locks, env, self.emit))
        signal.signal(signal.SIGTERM, self._hear)
        return {each.local_rank: rank.process.pid for each, rank in zip(worker_group.workers, self.ranks, strict=True)}

    def _environment(self, group: WorkerGroup, worker: Worker) -> dict[str, str]:
        """torchrun's variables; a process that trains alone has none of them, and must not look for others."""
        processes = group.spec.local_world_size
        env: dict[str, Any] = {"TORCHELASTIC_RESTART_COUNT": group.spec.max_restarts - self._remaining_restarts}
        if worker.world_size == 1:
            return {name: str(value) for name, value in env.items()}
        env |= {"RANK": worker.global_rank, "LOCAL_RANK": worker.local_rank, "WORLD_SIZE": worker.world_size}
        env |= {"GROUP_RANK": group.group_rank, "GROUP_WORLD_SIZE": group.group_world_size}
        env |= {"MASTER_ADDR": group.master_addr, "MASTER_PORT": group.master_port, "LOCAL_WORLD_SIZE": processes}
        env |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or threads(processes)}
        return {name: str(value) for name, value in {**env, "TORCHELASTIC_USE_AGENT_STORE": True}.items()}

    def _hear(self, _number: int, _frame: object) -> None:
        """A signal asks all ranks for a checkpoint; those of other nodes agree with them."""
        self.asked = True
        for rank in self.ranks:
            rank.process.terminate()

    def _stop_workers(self, worker_group: WorkerGroup, is_restart: bool = False) -> None:
        self._shutdown()

    def _shutdown(self, death_sig: signal.Signals = signal.SIGKILL, timeout: int = 0, **more: Any) -> None:
        """Ends all ranks at once: those that wait for one that has failed would wait for long."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for rank in self.ranks:
            rank.end()
        self.ranks = []

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        codes = [rank.code() for rank in self.ranks]
        failure = self._failed(codes)
        if failure:
            return self._given_up(failure)
        if INTERRUPTED in codes and None not in codes:
            raise Interrupted
        if None in codes or INTERRUPTED in codes:
            return RunResult(WorkerState.HEALTHY)
        return RunResult(WorkerState.SUCCEEDED, return_values={rank.number: None for rank in self.ranks})

    def _failed(self, codes: list[int | None]) -> Failure | None:
        """What has made a rank fail, here or on another node."""
        found = [cause for rank in self.ranks if (cause := rank.cause())]
        if not found:
            return self.meeting.failure() if None in codes else None
        if None in codes and all(each.kind == "lost" for each in found) and _age(found) < SETTLE:
            return self.meeting.failure()
        if self.asked and all(each.kind in ("ended", "lost") for each in found):
            raise Interrupted  # stopped before it could listen
        return self.meeting.agree(first(found), SETTLE)

    def _exit_barrier(self) -> None:
        self.meeting.end()
        super()._exit_barrier()  # type: ignore[no-untyped-call]

    def _given_up(self, failure: Failure) -> RunResult:
        if failure.kind not in AGAIN or self.asked:
            self._remaining_restarts = 0
        self.failure = failure
        spec = self._worker_group.spec
        if self._remaining_restarts:
            number = spec.max_restarts - self._remaining_restarts + 1
            self.emit(Restarted(restart=number, of=spec.max_restarts, reason=said(failure)))
        failures = {rank.number: ProcessFailure(0, rank.process.pid, 1, "") for rank in self.ranks}
        return RunResult(WorkerState.FAILED, failures=failures)


def first(found: list[Failure]) -> Failure:
    """The cause among failures that follow from each other: a rank that was killed, else what was said first.

    One that lost its connection to another comes last.
    """
    order = ("ended", "user", "disk", "memory", "bug")
    killed = [each for each in found if each.kind == "ended" and each.code < 0]
    own = [each for each in found if each.kind in order]
    return min(killed or own or found, key=lambda each: float(each.time))


def _age(found: list[Failure]) -> float:
    return time.monotonic() - min(float(each.time) for each in found)


def said(failure: Failure) -> str:
    """A failure in a few words."""
    if failure.kind == "ended":
        code = failure.code
        how = signal.Signals(-code).name if code < 0 else f"code {code}"
        return f"process {failure.rank} ended with {how}"
    words = failure.get("message") or failure.get("traceback", "").strip().splitlines()[-1]
    return f"process {failure.rank}: {words}"


def threads(processes: int) -> int:
    """Threads of a rank, so that all of them together have one a core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(cores // processes, 1)


def run(target: str, path: Path, ranks: Ranks, locks: list[int], emit: Emit) -> None:
    """Has `target` done by all ranks of this node; raises Interrupted, or ends this process where it failed."""
    command = [sys.executable, "-m", "sftrun.launch.workers", target, str(path)]
    meeting = Meeting(ranks, path, emit)
    spec = WorkerSpec(
        role="rank",
        local_world_size=ranks.processes,
        rdzv_handler=meeting,
        entrypoint=command[0],
        max_restarts=ranks.restarts,
        monitor_interval=EVERY,
    )
    agent = Agent(spec, meeting, command, locks, emit)
    try:
        result = agent.run()
    except Interrupted:
        meeting.leave()
        raise
    except DistError as error:  # what their store says
        what = "node 0 is gone" if ranks.node.rank else "the nodes lost each other"
        message = f"{what}: {str(error).splitlines()[0]}"
        raise UserError(message, hint="resume the run on all nodes; the log of each may say why") from error
    if result.is_failed() and agent.failure:
        emit(agent.failure)
        meeting.leave()
        sys.exit(1)


def main() -> None:
    """What the worker process runs."""
    target, path, descriptor, lifeline, ranks, locks = sys.argv[1:]
    asked, held = msgspec.json.decode(ranks, type=Ranks), msgspec.json.decode(locks, type=list[int])
    workers.serve(lambda emit: run(target, Path(path), asked, held, emit), int(descriptor), int(lifeline))


if __name__ == "__main__":
    main()
