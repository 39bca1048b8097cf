"""The heartbeat of node 0 in the run directory, for nodes that wait for node 0 and have no connection to it yet."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from sftrun.runs.directory import RunDir

FILE = ".node0"
INTERVAL = 2.0  # seconds between two heartbeats
TIMEOUT = 60.0  # seconds without a heartbeat after which node 0 counts as gone
START_TIMEOUT = 30 * 60.0  # seconds to wait for the first heartbeat
RESTART_HINT = "start all nodes again: sftrun resume, or --resume"


@contextlib.contextmanager
def heartbeat(run: RunDir, nodes: int) -> Iterator[None]:
    """Writes the heartbeat of node 0 inside the block; does nothing if there is only one node."""
    if nodes == 1:
        yield
        return
    file = run.path / FILE
    stop = threading.Event()

    def beat() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):  # other code reports a full disk
                file.write_text(str(time.time()))  # in place: network file systems cache a renamed file for longer
            stop.wait(INTERVAL)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        file.unlink(missing_ok=True)


class HeartbeatMonitor:
    """Another node's view of node 0's heartbeat; `seen` is True once there was one."""

    def __init__(self, run: Path, seen: bool = False) -> None:
        self.file = run / FILE
        self.seen = seen
        self.last = self._read()
        self.since = time.monotonic()  # when the last heartbeat was read
        with contextlib.suppress(ValueError):
            # an older heartbeat may be from an earlier attempt; the limit leaves room for the clocks of two machines
            self.seen |= time.time() - float(self.last or "") < TIMEOUT

    def explain_end(self) -> str | None:
        """Returns why waiting for node 0 is useless; None while it may still answer."""
        now = self._read()
        if now and now != self.last:  # the file is empty for a moment while it is written
            self.last = now
            self.since = time.monotonic()
            self.seen = True
        quiet = time.monotonic() - self.since
        if self.seen and now is None:
            return "has ended"
        if self.seen and quiet > TIMEOUT:
            return f"has sent no heartbeat for {TIMEOUT:.0f} seconds"
        return f"has not come in {START_TIMEOUT / 60:.0f} minutes" if quiet > START_TIMEOUT else None

    def _read(self) -> str | None:
        try:
            return self.file.read_text()
        except OSError:
            return None
