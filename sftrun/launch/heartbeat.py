"""Signs of life of node 0 in the run directory, for nodes that wait for it and have not met it yet."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from sftrun.runs.directory import RunDir

FILE = ".node0"
EVERY = 2.0  # seconds between two signs
SILENT = 60.0  # seconds without one after which node 0 is gone
PATIENCE = 30 * 60.0  # seconds to wait for the first one
AGAIN = "start all nodes again: sftrun resume, or --resume"  # what to do then


@contextlib.contextmanager
def beating(run: RunDir, nodes: int) -> Iterator[None]:
    """While it lasts, node 0 of several shows that it is there."""
    if nodes == 1:
        yield
        return
    file, ended = run.path / FILE, threading.Event()

    def beat() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError):  # a full disk is for others to tell
                file.write_text(str(time.time()))  # in place: what a name stands for, network file systems keep longer
            ended.wait(EVERY)

    beats = threading.Thread(target=beat, daemon=True)
    beats.start()
    try:
        yield
    finally:
        ended.set()
        beats.join()
        file.unlink(missing_ok=True)


class Pulse:
    """What another node hears of node 0; `heard` says that it has been there."""

    def __init__(self, run: Path, heard: bool = False) -> None:
        self.file, self.heard = run / FILE, heard
        self.last, self.since = self._read(), time.monotonic()
        with contextlib.suppress(ValueError):
            # by the clocks of two machines, so an older one may be of another attempt
            self.heard |= time.time() - float(self.last or "") < SILENT

    def ended(self) -> str | None:
        """Why there is nothing to wait for any more; None where there is."""
        now = self._read()
        if now and now != self.last:  # it is empty for a moment
            self.last, self.since, self.heard = now, time.monotonic(), True
        quiet = time.monotonic() - self.since
        if self.heard and now is None:
            return "has ended"
        if self.heard and quiet > SILENT:
            return f"has shown no sign of life for {SILENT:.0f} seconds"
        return f"has not come in {PATIENCE / 60:.0f} minutes" if quiet > PATIENCE else None

    def _read(self) -> str | None:
        try:
            return self.file.read_text()
        except OSError:
            return None
