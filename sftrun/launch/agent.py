"""The worker process that starts the ranks of a node: torch's elastic agent, with our own processes and rendezvous.

torch's own agent passes no pipes to its processes, so the ranks are started here. Each rank reports as any worker
does, and none outlives this process. The parent receives the events of rank 0, and the root cause of a failure. Nodes
keep the numbers that they were given, because node 0 owns the run directory.
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
from sftrun.launch import failures, workers
from sftrun.launch.failures import DONE, INTERRUPTED
from sftrun.launch.rendezvous import Rendezvous
from sftrun.launch.workers import Ranks

POLL_INTERVAL = 0.05  # seconds between two checks of the ranks
SETTLE = 15.0  # seconds to wait after a lost connection, until the rank that failed reports the cause
DRAIN = 10.0  # seconds to read the last events of a killed rank: its data loaders keep the pipe open for a while
RESTARTABLE = ("bug", "ended", "killed", "lost")  # kinds of failures that may not happen again after a restart


class Rank:
    """The process of one rank, and the failure that it reported; passes on the events of rank 0 only."""

    def __init__(self, worker: Worker, command: list[str], locks: list[int], env: dict[str, str], emit: Emit) -> None:
        self.number = worker.global_rank
        self.emit = emit
        self.failure: Failure | None = None
        self.oom_kills = failures.count_oom_kills()
        reading, writing = os.pipe()
        lifeline, self.parent_end = os.pipe()
        command = [*command, str(writing), str(lifeline)]
        self.process = subprocess.Popen(
            command, pass_fds=[writing, lifeline, *locks], stdin=subprocess.DEVNULL, env={**os.environ, **env}
        )
        os.close(writing)
        os.close(lifeline)
        self.reader = threading.Thread(target=self._read_events, args=(reading,), daemon=True)
        self.reader.start()

    def _read_events(self, reading: int) -> None:
        with workers.open_events(reading) as lines:
            for line in lines:
                for event in workers.read_events(line):
                    self._receive(event)

    def _receive(self, event: Event) -> None:
        if isinstance(event, Failure):
            self.failure = msgspec.structs.replace(event, time=time.monotonic(), rank=self.number)
        elif self.number == 0:
            self.emit(event)

    def poll(self) -> int | None:
        """Returns the exit code, once every event is read; None while the rank is running."""
        code = self.process.poll()
        if code is not None:
            self.reader.join(DRAIN)
        return code

    def kill(self) -> None:
        """Kills the rank, if it is still running."""
        self.process.kill()
        self.process.wait()
        self.reader.join(DRAIN)
        os.close(self.parent_end)

    def find_failure(self) -> Failure | None:
        """Returns the failure that the rank reported, or else its exit code as one; None if it has not failed."""
        code = self.poll()
        if code in (None, DONE, INTERRUPTED):
            return None
        if self.failure is None:
            self._receive(failures.describe_exit(code or 0, self.oom_kills))
        return self.failure


class Agent(SimpleElasticAgent):
    """torch's elastic agent: numbers the ranks of all nodes, and restarts them after a failure of any rank."""

    def __init__(
        self, spec: WorkerSpec, rendezvous: Rendezvous, command: list[str], locks: list[int], emit: Emit
    ) -> None:
        super().__init__(spec)
        self.rendezvous = rendezvous
        self.command = command
        self.locks = locks
        self.emit = emit
        self.ranks: list[Rank] = []
        self.stop_requested = False
        self.failure: Failure | None = None

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self.failure = None
        for each in worker_group.workers:
            env = self._environment(worker_group, each)
            self.ranks.append(Rank(each, self.command, self.locks, env, self.emit))
        signal.signal(signal.SIGTERM, self._handle_signal)
        return {each.local_rank: rank.process.pid for each, rank in zip(worker_group.workers, self.ranks, strict=True)}

    def _environment(self, group: WorkerGroup, worker: Worker) -> dict[str, str]:
        """Returns torchrun's variables; a single process gets none for ranks, so that it does not wait for others."""
        processes = group.spec.local_world_size
        env: dict[str, Any] = {"TORCHELASTIC_RESTART_COUNT": group.spec.max_restarts - self._remaining_restarts}
        if worker.world_size == 1:
            return {name: str(value) for name, value in env.items()}
        env |= {"RANK": worker.global_rank, "LOCAL_RANK": worker.local_rank, "WORLD_SIZE": worker.world_size}
        env |= {"GROUP_RANK": group.group_rank, "GROUP_WORLD_SIZE": group.group_world_size}
        env |= {"MASTER_ADDR": group.master_addr, "MASTER_PORT": group.master_port, "LOCAL_WORLD_SIZE": processes}
        env |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or share_cores(processes)}
        return {name: str(value) for name, value in {**env, "TORCHELASTIC_USE_AGENT_STORE": True}.items()}

    def _handle_signal(self, _number: int, _frame: object) -> None:
        """Asks every rank for a checkpoint; the ranks of other nodes agree on the step with them."""
        self.stop_requested = True
        for rank in self.ranks:
            rank.process.terminate()

    def _stop_workers(self, worker_group: WorkerGroup, is_restart: bool = False) -> None:
        self._shutdown()

    def _shutdown(self, death_sig: signal.Signals = signal.SIGKILL, timeout: int = 0, **more: Any) -> None:
        """Kills every rank at once: a rank that waits for a failed one would wait for long."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for rank in self.ranks:
            rank.kill()
        self.ranks = []

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        codes = [rank.poll() for rank in self.ranks]
        failure = self._find_failure(codes)
        if failure:
            return self._report_failure(failure)
        if INTERRUPTED in codes and None not in codes:
            raise Interrupted
        if None in codes or INTERRUPTED in codes:
            return RunResult(WorkerState.HEALTHY)
        return RunResult(WorkerState.SUCCEEDED, return_values={rank.number: None for rank in self.ranks})

    def _find_failure(self, codes: list[int | None]) -> Failure | None:
        """Returns the failure that all nodes agree on; None if no rank has failed, here or on another node."""
        found = [failure for rank in self.ranks if (failure := rank.find_failure())]
        if not found:
            return self.rendezvous.find_failure() if None in codes else None
        if None in codes and all(each.kind == "lost" for each in found) and _age(found) < SETTLE:
            return self.rendezvous.find_failure()
        if self.stop_requested and all(each.kind in ("ended", "killed", "lost") for each in found):
            raise Interrupted  # the signal came before the rank handled signals
        return self.rendezvous.agree_on_failure(find_root_cause(found), SETTLE)

    def _exit_barrier(self) -> None:
        self.rendezvous.mark_finished()
        super()._exit_barrier()  # type: ignore[no-untyped-call]

    def _report_failure(self, failure: Failure) -> RunResult:
        if failure.kind not in RESTARTABLE or self.stop_requested:
            self._remaining_restarts = 0
        self.failure = failure
        spec = self._worker_group.spec
        if self._remaining_restarts:
            number = spec.max_restarts - self._remaining_restarts + 1
            self.emit(Restarted(restart=number, of=spec.max_restarts, reason=summarise(failure)))
        ended = {rank.number: ProcessFailure(0, rank.process.pid, 1, "") for rank in self.ranks}
        return RunResult(WorkerState.FAILED, failures=ended)


def find_root_cause(found: list[Failure]) -> Failure:
    """Returns the failure that caused the others: a rank that was killed, else the earliest one.

    A lost connection counts only if there is nothing else.
    """
    causes = ("ended", "killed", "user", "disk", "memory", "bug")
    killed = [each for each in found if each.code < 0]
    own = [each for each in found if each.kind in causes]
    return min(killed or own or found, key=lambda each: float(each.time))


def _age(found: list[Failure]) -> float:
    return time.monotonic() - min(float(each.time) for each in found)


def summarise(failure: Failure) -> str:
    """Returns a failure in a few words."""
    if failure.kind in ("ended", "killed"):
        code = failure.code
        how = signal.Signals(-code).name if code < 0 else f"code {code}"
        return f"process {failure.rank} ended with {how}"
    words = failure.get("message") or failure.get("traceback", "").strip().splitlines()[-1]
    return f"process {failure.rank}: {words}"


def share_cores(processes: int) -> int:
    """Returns the number of threads per rank, so that all ranks together have one thread per core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(cores // processes, 1)


def run_ranks(target: str, path: Path, ranks: Ranks, locks: list[int], emit: Emit) -> None:
    """Calls `target` in every rank of this node; raises Interrupted after a signal, Reported after a failure."""
    command = [sys.executable, "-m", "sftrun.launch.workers", target, str(path)]
    rendezvous = Rendezvous(ranks, path, emit)
    spec = WorkerSpec(
        role="rank",
        local_world_size=ranks.processes,
        rdzv_handler=rendezvous,
        entrypoint=command[0],
        max_restarts=ranks.restarts,
        monitor_interval=POLL_INTERVAL,
    )
    agent = Agent(spec, rendezvous, command, locks, emit)
    try:
        result = agent.run()
    except Interrupted:
        rendezvous.leave()
        raise
    except DistError as error:  # raised by the store of the rendezvous
        what = "node 0 is gone" if ranks.node.rank else "the nodes lost each other"
        message = f"{what}: {str(error).splitlines()[0]}"
        raise UserError(message, hint="resume the run on all nodes; the log of each may say why") from error
    if result.is_failed() and agent.failure:
        emit(agent.failure)
        rendezvous.leave()
        raise workers.Reported


def main() -> None:
    """Runs the agent process."""
    target, path, descriptor, lifeline, encoded_ranks, encoded_locks = sys.argv[1:]
    ranks = msgspec.json.decode(encoded_ranks, type=Ranks)
    locks = msgspec.json.decode(encoded_locks, type=list[int])
    workers.serve(lambda emit: run_ranks(target, Path(path), ranks, locks, emit), int(descriptor), int(lifeline))


if __name__ == "__main__":
    main()
