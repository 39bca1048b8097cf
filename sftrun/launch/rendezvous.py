"""The rendezvous of the nodes of a training: a store on node 0, which also holds heartbeats and failures."""

import contextlib
import hashlib
import json
import socket
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from sftrun import events
from sftrun.errors import UserError
from sftrun.kinds import Emit
from sftrun.launch.heartbeat import RESTART_HINT, TIMEOUT, HeartbeatMonitor
from sftrun.launch.topology import parse_endpoint
from sftrun.launch.workers import Ranks

ARRIVAL_TIMEOUT = timedelta(minutes=30)  # for every node to join
ABSENT_NOTICE = 20.0  # seconds until a warning names the nodes that have not joined
STORE_TIMEOUT = timedelta(minutes=1)  # for an answer of the store
LEAVE_TIMEOUT = timedelta(seconds=10)  # for other nodes to read the failure, before the store is gone
CONNECT_TIMEOUT = timedelta(seconds=10)  # for one attempt to connect; then node 0's heartbeat is checked
POLL_INTERVAL = 0.5  # seconds between two reads of the store
HEARTBEAT_INTERVAL = 2.0  # seconds between two heartbeats of a node
FINISHED = 2**32  # sentinel: added to the heartbeat count of a node that has finished
LOOPBACK = "127.0.0.1"
ENDPOINT_HINT = "--rendezvous names a free port of node 0, by a name that every node knows"
LOGS_HINT = f"run.log and run-node*.log may say why; {RESTART_HINT}"


class Rendezvous(RendezvousHandler):
    """A rendezvous of nodes with fixed numbers; each attempt has its own store, because ranks leave keys in theirs."""

    def __init__(self, ranks: Ranks, run: Path, emit: Emit) -> None:
        self.emit = emit
        self.nodes = ranks.nodes
        self.number = ranks.node.rank
        self.endpoint = ranks.node.rendezvous
        recipe = None if ranks.recipe is None else _sha256(ranks.recipe)
        self.description = {"nodes": ranks.nodes, "processes": ranks.processes, "recipe": recipe}
        self.file = run / "resolved.yaml"
        self.attempt = -1
        self.last_poll = 0.0
        self.last_heartbeat = 0.0
        self.hosts: list[str] = []
        self.heartbeats: dict[int, tuple[int, float]] = {}  # by node: their count, and when it last rose
        self.store: Store | None = None
        self.rank_stores: list[Any] = []  # one an attempt, kept open as long as this process

    def next_rendezvous(self) -> RendezvousInfo:
        """Returns the stores for the next attempt; the agent calls it before each one."""
        self.attempt += 1
        host, port = (parse_endpoint(self.endpoint) if self.endpoint else None) or (LOOPBACK, 0)
        if self.store is None:
            self.store = self._join(host, port)
        key = f"port/{self.attempt}"
        if self.number == 0:
            own = TCPStore(host, 0, is_master=True, wait_for_workers=False)
            self.rank_stores.append(own)
            self.store.set(key, str(own.port))
        store_info = RendezvousStoreInfo(host, int(self.store.get(key)))
        agents = PrefixStore(f"agents/{self.attempt}", self.store)
        return RendezvousInfo(agents, self.number, self.nodes, store_info)

    def _join(self, host: str, port: int) -> Store:
        """Returns the store of all nodes, once every node has joined and sees the same run directory."""
        store = self._create_store(host, port) if self.number == 0 else self._connect_to_store(host, port)
        # read only now: node 0 has written the file before it created the store
        run = _sha256(self.file.read_text("utf-8")) if self.file.is_file() else None
        own = {**self.description, "run": run, "host": socket.gethostname()}
        if store.add(f"count/{self.number}", 1) > 1:
            raise UserError(f"another command has come with --node-rank {self.number}")
        store.set(f"node/{self.number}", json.dumps(own))
        self._wait_for_all(store)
        nodes = [json.loads(store.get(f"node/{number}")) for number in range(self.nodes)]
        self.hosts = [node["host"] for node in nodes]
        try:
            for number, node in enumerate(nodes):
                _compare_nodes(number, node, nodes[0])
        except UserError:
            self._leave(store)
            raise
        return store

    def _create_store(self, host: str, port: int) -> Store:
        try:
            return TCPStore(host, port, is_master=True, wait_for_workers=False, timeout=STORE_TIMEOUT)
        except RuntimeError as error:
            message = f"node 0 cannot listen at {host}:{port}: {str(error).splitlines()[0]}"
            raise UserError(message, hint=ENDPOINT_HINT) from error

    def _connect_to_store(self, host: str, port: int) -> Store:
        """Returns the store on node 0; connects in a thread, as another program at that port may never answer."""
        monitor = HeartbeatMonitor(self.file.parent, seen=True)
        end = time.monotonic() + ARRIVAL_TIMEOUT.seconds
        found: list[Store] = []
        error = "no answer"

        def connect() -> None:
            nonlocal error
            try:
                found.append(TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=CONNECT_TIMEOUT))
            except RuntimeError as failed:
                error = str(failed).splitlines()[0]

        thread = threading.Thread(target=connect, daemon=True)
        while not found:
            if not thread.is_alive():
                thread = threading.Thread(target=connect, daemon=True)
                thread.start()
            thread.join(POLL_INTERVAL)
            if not found and (ended := monitor.explain_end()):
                raise UserError(f"node 0 {ended}, before the nodes met", hint=LOGS_HINT)
            if time.monotonic() > end:
                raise UserError(f"node 0 was not found at {host}:{port}: {error}", hint=ENDPOINT_HINT)
        found[0].set_timeout(STORE_TIMEOUT)
        return found[0]

    def _wait_for_all(self, store: Store) -> None:
        start = time.monotonic()
        warned = False
        while absent := [number for number in range(self.nodes) if not store.check([f"node/{number}"])]:
            named = ", ".join(map(str, absent))
            waited = time.monotonic() - start
            if waited > ARRIVAL_TIMEOUT.seconds:
                message = f"after {ARRIVAL_TIMEOUT.seconds // 60} minutes, these nodes have not come: {named}"
                raise UserError(message, hint="each node runs the same command, with its own --node-rank")
            if waited > ABSENT_NOTICE and not warned:
                self.emit(events.Warned(message=f"these nodes have not come yet: {named}"))
                warned = True
            time.sleep(POLL_INTERVAL)

    def agree_on_failure(self, failure: events.Failure, settle: float) -> events.Failure:
        """Returns the failure that every node reports: the first in the store.

        A node that only lost a connection waits up to `settle` seconds for the cause, from the node that has it.
        """
        if self.nodes == 1:
            return failure
        assert self.store is not None
        key = f"failed/{self.attempt}"
        end = time.monotonic() + (settle if failure.kind == "lost" else 0)
        try:
            self._exchange_heartbeats()
            while time.monotonic() < end and not self.store.check([key]):
                time.sleep(POLL_INTERVAL)
                self._exchange_heartbeats()
            if failure.kind == "lost":
                failure = self._find_silent_node(settle - 2 * HEARTBEAT_INTERVAL) or failure
            return _read(self.store.compare_set(key, "", events.to_json(failure)))
        except RuntimeError:  # the store is gone, and node 0 with it
            return self._describe_lost_node(0)

    def find_failure(self) -> events.Failure | None:
        """Returns the failure of another node; None if there is none, or if the last check was a moment ago."""
        if self.nodes == 1 or time.monotonic() - self.last_poll < POLL_INTERVAL:
            return None
        assert self.store is not None
        self.last_poll = time.monotonic()
        key = f"failed/{self.attempt}"
        try:
            self._exchange_heartbeats()
            return _read(self.store.get(key)) if self.store.check([key]) else self._find_silent_node(TIMEOUT)
        except RuntimeError:
            return self._describe_lost_node(0)

    def _exchange_heartbeats(self) -> None:
        """Writes a heartbeat of this node, and reads the heartbeats of other nodes."""
        assert self.store is not None
        now = time.monotonic()
        if now - self.last_heartbeat < HEARTBEAT_INTERVAL:
            return
        self.last_heartbeat = now
        for number in range(self.nodes):
            count = self.store.add(f"alive/{number}", int(number == self.number))
            if count != self.heartbeats.get(number, (-1, 0.0))[0]:
                self.heartbeats[number] = (count, now)

    def _find_silent_node(self, limit: float) -> events.Failure | None:
        """Returns the failure of a node without a heartbeat for `limit` seconds; None if every node has one."""
        for number, (count, since) in self.heartbeats.items():
            if count < FINISHED and self.last_heartbeat - since > limit:
                return self._describe_lost_node(number)
        return None

    def _describe_lost_node(self, number: int) -> events.Failure:
        message = f"node {number}, {self.hosts[number]}, is gone"
        return events.Failure(kind="gone", message=message, time=time.monotonic())

    def mark_finished(self) -> None:
        """Tells other nodes that this node has finished, and sends no more heartbeats."""
        if self.nodes > 1 and self.store is not None:
            self.store.add(f"alive/{self.number}", FINISHED)

    def leave(self) -> None:
        """Waits a while until other nodes have read the failure, before the store is gone."""
        if self.nodes > 1 and self.store is not None:
            self._leave(self.store)

    def _leave(self, store: Store) -> None:
        with contextlib.suppress(RuntimeError):
            store.set(f"left/{self.number}", "")
            if self.number == 0:
                store.wait([f"left/{number}" for number in range(self.nodes)], LEAVE_TIMEOUT)

    @property
    def use_agent_store(self) -> bool:
        """Returns True: ranks use a store of this process, so no port can be taken before they listen on it."""
        return True

    def get_backend(self) -> str:
        """Returns a name for torch's logs."""
        return "sftrun"

    def get_run_id(self) -> str:
        """Returns a name for torch's logs."""
        return str(self.file.parent)

    def is_closed(self) -> bool:
        """Returns False: a run has one rendezvous, which is never closed."""
        return False

    def set_closed(self) -> None:
        """Does nothing: see `is_closed`."""

    def num_nodes_waiting(self) -> int:
        """Returns 0: no node can join later."""
        return 0

    def shutdown(self) -> bool:
        """Returns True without doing anything: the store ends with this process."""
        return True


def _compare_nodes(number: int, node: dict[str, Any], first: dict[str, Any]) -> None:
    """Raises UserError, on every node, if a node cannot train with node 0."""
    for key, what in {"nodes": "launch.nodes", "processes": "launch.processes"}.items():
        if node[key] != first[key]:
            message = f"{what} is {node[key]} on node {number} and {first[key]} on node 0"
            raise UserError(message, hint="every node trains with as many processes as the others")
    if node["run"] != first["run"]:
        message = f"node {number}, {node['host']}, sees another run directory than node 0, {first['host']}"
        raise UserError(message, hint="--out must be on a file system that all nodes share")
    if node["recipe"] not in (None, first["run"]):
        message = f"node {number} has another recipe than node 0"
        raise UserError(message, hint="every node runs the same recipe, with the same --set")


def _read(failure: str | bytes) -> events.Failure:
    return msgspec.convert(json.loads(failure), events.Failure)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
