"""What a worker process may do, for tests/test_launch.py."""

import errno
import os
import signal
import time

import sftrun


def report(recipe, run, emit):
    emit({"event": "step", "seed": recipe.seed})


def user_error(recipe, run, emit):
    raise sftrun.UserError(sftrun.Problem("too hot", path=("train", "precision"), hint="cool it"))


def bug(recipe, run, emit):
    raise ZeroDivisionError("a bug of ours")


def memory(recipe, run, emit):
    raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")


def allocator(recipe, run, emit):
    import torch

    torch.empty(1 << 55)


def killed(recipe, run, emit):
    os.kill(os.getpid(), signal.SIGKILL)


def full_disk(recipe, run, emit):
    raise OSError(errno.ENOSPC, "No space left on device", "weights")


def stopped(recipe, run, emit):
    raise sftrun.Interrupted


def waiting(recipe, run, emit):
    emit({"event": "ready"})
    time.sleep(60)


def stubborn(recipe, run, emit):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    waiting(recipe, run, emit)


def crashed(recipe, run, emit):
    os.write(2, b"a library's last words\n")
    os._exit(7)
