"""Signals: the first one asks the worker to stop, the second one kills it."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

from sftrun.errors import Interrupted

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ECHO = 2.0  # seconds within which SIGTERM is the same one again


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
