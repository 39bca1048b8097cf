"""Where the nodes of a training meet: a store on the first one, in which they find each other and what has failed."""

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
from sftrun.launch.heartbeat import AGAIN, SILENT, Pulse
from sftrun.launch.topology import address
from sftrun.launch.workers import Ranks

PATIENCE = timedelta(minutes=30)  # for all nodes to come
NOTICE = 20.0  # seconds after which it is said who has not come
MOMENT = timedelta(minutes=1)  # for a node that is there to answer
LAST = timedelta(seconds=10)  # for them to read what has failed
TRY = timedelta(seconds=10)  # to connect to node 0, before looking whether it is there at all
EVERY = 0.5  # seconds between two looks at what other nodes say
BEAT = 2.0  # seconds between two signs of life of a node
ENDED = 2**32  # more of them than there can be: the node has ended well
HOME = "127.0.0.1"
WHERE = "--rendezvous names a free port of node 0, by a name that every node knows"
LOGS = f"run.log and run-node*.log may say why; {AGAIN}"


class Meeting(RendezvousHandler):
    """A rendezvous of nodes with fixed numbers; each attempt has a store of its own, as ranks leave keys in theirs."""

    def __init__(self, ranks: Ranks, run: Path, emit: Emit) -> None:
        self.emit = emit
        self.nodes, self.number = ranks.nodes, ranks.node.rank
        self.place = ranks.node.rendezvous
        recipe = None if ranks.recipe is None else _hash(ranks.recipe)
        self.about = {"nodes": ranks.nodes, "processes": ranks.processes, "recipe": recipe}
        self.file = run / "resolved.yaml"
        self.attempt = -1
        self.looked = self.beaten = 0.0
        self.hosts: list[str] = []
        self.beats: dict[int, tuple[int, float]] = {}  # of each node: how many signs of life, and when the last came
        self.store: Store | None = None
        self.kept: list[Any] = []  # stores live as long as this process

    def next_rendezvous(self) -> RendezvousInfo:
        """Called by the agent before each attempt."""
        self.attempt += 1
        host, port = (address(self.place) if self.place else None) or (HOME, 0)
        if self.store is None:
            self.store = self._meet(host, port)
        key = f"port/{self.attempt}"
        if self.number == 0:
            own = TCPStore(host, 0, is_master=True, wait_for_workers=False)
            self.kept.append(own)
            self.store.set(key, str(own.port))
        found = RendezvousStoreInfo(host, int(self.store.get(key)))
        agents = PrefixStore(f"agents/{self.attempt}", self.store)
        return RendezvousInfo(agents, self.number, self.nodes, found)

    def _meet(self, host: str, port: int) -> Store:
        """The store of all nodes, when all are there and see the same run directory."""
        store = self._listening(host, port) if self.number == 0 else self._reached(host, port)
        # read only now: node 0 has written it by the time that it listens
        run = _hash(self.file.read_text("utf-8")) if self.file.is_file() else None
        own = {**self.about, "run": run, "host": socket.gethostname()}
        if store.add(f"count/{self.number}", 1) > 1:
            raise UserError(f"another command has come with --node-rank {self.number}")
        store.set(f"node/{self.number}", json.dumps(own))
        self._wait_for_all(store)
        nodes = [json.loads(store.get(f"node/{number}")) for number in range(self.nodes)]
        self.hosts = [node["host"] for node in nodes]
        try:
            for number, node in enumerate(nodes):
                _compare(number, node, nodes[0])
        except UserError:
            self._leave(store)
            raise
        return store

    def _listening(self, host: str, port: int) -> Store:
        try:
            return TCPStore(host, port, is_master=True, wait_for_workers=False, timeout=MOMENT)
        except RuntimeError as error:
            message = f"node 0 cannot listen at {host}:{port}: {str(error).splitlines()[0]}"
            raise UserError(message, hint=WHERE) from error

    def _reached(self, host: str, port: int) -> Store:
        """The store on node 0, when it is there; what listens in its place may be a program that never answers."""
        pulse, end = Pulse(self.file.parent, heard=True), time.monotonic() + PATIENCE.seconds
        found: list[Store] = []
        error = "no answer"

        def connect() -> None:
            nonlocal error
            try:
                found.append(TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=TRY))
            except RuntimeError as failed:
                error = str(failed).splitlines()[0]

        trying = threading.Thread(target=connect, daemon=True)
        while not found:
            if not trying.is_alive():
                trying = threading.Thread(target=connect, daemon=True)
                trying.start()
            trying.join(EVERY)
            if not found and (ended := pulse.ended()):
                raise UserError(f"node 0 {ended}, before the nodes met", hint=LOGS)
            if time.monotonic() > end:
                raise UserError(f"node 0 was not found at {host}:{port}: {error}", hint=WHERE)
        found[0].set_timeout(MOMENT)
        return found[0]

    def _wait_for_all(self, store: Store) -> None:
        start, told = time.monotonic(), False
        while absent := [number for number in range(self.nodes) if not store.check([f"node/{number}"])]:
            named, waited = ", ".join(map(str, absent)), time.monotonic() - start
            if waited > PATIENCE.seconds:
                message = f"after {PATIENCE.seconds // 60} minutes, these nodes have not come: {named}"
                raise UserError(message, hint="each node runs the same command, with its own --node-rank")
            if waited > NOTICE and not told:
                self.emit(events.Warned(message=f"these nodes have not come yet: {named}"))
                told = True
            time.sleep(EVERY)

    def agree(self, failure: events.Failure, settle: float) -> events.Failure:
        """The failure that all nodes speak of: the first one that is a cause, not a lost connection."""
        if self.nodes == 1:
            return failure
        assert self.store is not None
        key = f"failed/{self.attempt}"
        end = time.monotonic() + (settle if failure.kind == "lost" else 0)
        try:
            self._listen()
            while time.monotonic() < end and not self.store.check([key]):
                time.sleep(EVERY)
                self._listen()
            if failure.kind == "lost":
                failure = self._silent(settle - 2 * BEAT) or failure
            return _read(self.store.compare_set(key, "", events.to_json(failure)))
        except RuntimeError:  # the store is gone, and node 0 with it
            return self._gone(0)

    def failure(self) -> events.Failure | None:
        """What has failed on another node."""
        if self.nodes == 1 or time.monotonic() - self.looked < EVERY:
            return None
        assert self.store is not None
        self.looked, key = time.monotonic(), f"failed/{self.attempt}"
        try:
            self._listen()
            return _read(self.store.get(key)) if self.store.check([key]) else self._silent(SILENT)
        except RuntimeError:
            return self._gone(0)

    def _listen(self) -> None:
        """Gives a sign of life, and notes those of other nodes."""
        assert self.store is not None
        now = time.monotonic()
        if now - self.beaten < BEAT:
            return
        self.beaten = now
        for number in range(self.nodes):
            count = self.store.add(f"alive/{number}", int(number == self.number))
            if count != self.beats.get(number, (-1, 0.0))[0]:
                self.beats[number] = (count, now)

    def _silent(self, limit: float) -> events.Failure | None:
        """The failure of a node that has shown no sign of life for so many seconds."""
        seen = self.beats.items()
        late = (number for number, (count, since) in seen if count < ENDED and self.beaten - since > limit)
        number = next(late, None)
        return None if number is None else self._gone(number)

    def _gone(self, number: int) -> events.Failure:
        message = f"node {number}, {self.hosts[number]}, is gone"
        return events.Failure(kind="gone", message=message, time=time.monotonic())

    def end(self) -> None:
        """Says that this node has ended well, and will be silent."""
        if self.nodes > 1 and self.store is not None:
            self.store.add(f"alive/{self.number}", ENDED)

    def leave(self) -> None:
        """Gives other nodes time to end too, and to read what has failed, before the store is gone."""
        if self.nodes > 1 and self.store is not None:
            self._leave(self.store)

    def _leave(self, store: Store) -> None:
        with contextlib.suppress(RuntimeError):
            store.set(f"left/{self.number}", "")
            if self.number == 0:
                store.wait([f"left/{number}" for number in range(self.nodes)], LAST)

    @property
    def use_agent_store(self) -> bool:
        """Ranks meet in a store of this process, so that no port can be taken before they use it."""
        return True

    def get_backend(self) -> str:
        """A name for torch's logs."""
        return "sftrun"

    def get_run_id(self) -> str:
        """A name for torch's logs."""
        return str(self.file.parent)

    def is_closed(self) -> bool:
        """Never: there is one meeting a run."""
        return False

    def set_closed(self) -> None:
        """Nothing to do."""

    def num_nodes_waiting(self) -> int:
        """None can join later."""
        return 0

    def shutdown(self) -> bool:
        """The store goes with this process."""
        return True


def _compare(number: int, node: dict[str, Any], first: dict[str, Any]) -> None:
    """Raises UserError, on all nodes, where one cannot train with the first."""
    for key, what in {"nodes": "launch.nodes", "processes": "launch.processes"}.items():
        if node[key] != first[key]:
            message = f"{what} is {node[key]} on node {number} and {first[key]} on node 0"
            raise UserError(message, hint="every node trains with as many processes as the others")
    if node["run"] != first["run"]:
        message = f"node {number}, {node['host']}, sees another run directory than node 0, {first['host']}"
        raise UserError(message, hint="--out must be on a file system that all nodes share")
    if node["recipe"] not in (None, first["run"]):
        message = f"the recipe of node {number} is not that of node 0"
        raise UserError(message, hint="every node runs the same recipe, with the same --set")


def _read(failure: str | bytes) -> events.Failure:
    return msgspec.convert(json.loads(failure), events.Failure)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
