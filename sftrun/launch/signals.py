"""Signal handling in the parent process: the first signal asks the worker to stop, the second one kills it."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

from sftrun.errors import Interrupted

HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([HANGUP] if HANGUP else []))
ECHO = 2.0  # seconds within which a second SIGTERM counts as the first one again


class Signals:
    """The handler of SIGINT, SIGTERM and SIGHUP: the first signal asks the worker to stop, the second one kills it."""

    def __init__(self) -> None:
        self.received = 0
        self.first = 0  # number of the first signal
        self.last_time = 0.0  # when the last signal came, by the monotonic clock
        self.depth = 0
        self.process: subprocess.Popen[bytes] | None = None  # the worker, while it runs

    @contextlib.contextmanager
    def handling(self) -> Iterator[None]:
        """Handles signals inside the block; does nothing outside the main thread, which alone may set handlers."""
        if self.depth or threading.current_thread() is not threading.main_thread():
            yield
            return
        self.received = 0
        self.depth = 1
        # under nohup the hangup is ignored
        handled = [each for each in STOP_SIGNALS if each != HANGUP or signal.getsignal(each) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._handle) for number in handled}
        try:
            yield
        finally:
            self.depth = 0
            for number, handler in before.items():
                signal.signal(number, handler)

    def raise_if_interrupted(self) -> None:
        """Raises Interrupted if a signal came while a worker was running."""
        if self.received:
            raise Interrupted

    def _handle(self, number: int, _frame: object) -> None:
        if self.received and self._is_echo(number):
            return
        self.received += 1
        self.last_time = time.monotonic()
        if self.received == 1:
            self.first = number
        if self.process is None:
            _write_stderr(b"\n")
            raise Interrupted
        if self.received == 1:
            _write_stderr(b"\nstopping as soon as all is safe; once more stops at once\n")
            self.process.terminate()
        else:
            self.process.kill()

    def _is_echo(self, number: int) -> bool:
        """Returns True if a signal repeats the first one.

        The shell and the kernel both send SIGHUP when a terminal closes. `timeout` sends SIGTERM to its process, and
        again to its process group.
        """
        soon = time.monotonic() - self.last_time < ECHO
        return number == HANGUP or (number == self.first == signal.SIGTERM and soon)


def _write_stderr(text: bytes) -> None:
    # not by print: the signal may have interrupted a print of ours in the middle of a line
    try:
        os.write(2, text)
    except OSError:  # the terminal is closed: later messages must not fail either
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


SIGNALS = Signals()
