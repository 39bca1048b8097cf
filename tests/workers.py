"""What a worker process may do, for tests/test_launch.py."""

import os
import signal

import sftrun


def report(recipe, run, emit):
    emit({"event": "step", "seed": recipe.seed})


def user_error(recipe, run, emit):
    raise sftrun.UserError(sftrun.Problem("too hot", path=("train", "precision"), hint="cool it"))


def bug(recipe, run, emit):
    raise ZeroDivisionError("a bug of ours")


def memory(recipe, run, emit):
    raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")


def killed(recipe, run, emit):
    os.kill(os.getpid(), signal.SIGKILL)


def crashed(recipe, run, emit):
    os.write(2, b"a library's last words\n")
    os._exit(7)
