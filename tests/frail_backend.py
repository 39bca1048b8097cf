"""A plugin with the backend `frail`, which fails as on a small machine, and `mute`, which has no estimate."""

import contextlib
import os
from pathlib import Path

import pytest

from sftrun.registry import current

ROOT = Path(__file__).parent.parent
FRAIL = '''
"""Backend `frail`: the built-in one, but from some step on, more rows than a limit take too much memory."""

import os
import pathlib
import signal
from typing import Annotated, Literal

import msgspec

import sftrun

SFTRUN_API = 1


class FrailOptions(sftrun.Options):
    """The limits of the small machine."""

    rows: Annotated[int, sftrun.Meta(description="Rows that fit.")] = 4
    step: Annotated[int, sftrun.Meta(description="The first step that takes so much.")] = 3
    how: Annotated[Literal["raised", "killed"], sftrun.Meta(description="What happens.")] = "raised"


@sftrun.hookimpl
def register_backends(register: sftrun.Register) -> None:
    register("frail", Frail, options=FrailOptions)
    register("mute", Mute)


class Mute:
    """A backend without an estimate."""

    def __init__(self):
        self.inner = sftrun.create("backend", "hf")

    @property
    def honours(self):
        return self.inner.honours

    def train(self, work):
        self.inner.train(work)

    def load(self, work):
        return self.inner.load(work)


class Frail(Mute):
    """A backend on a small machine."""

    distributed = True

    def __init__(self, options):
        super().__init__()
        self.options = options

    def estimate(self, work):
        return self.inner.estimate(work)

    def train(self, work):
        train = work.recipe.train

        def watch(event):
            work.emit(event)
            stepped = event["event"] == "step" and event["step"] >= self.options.step
            validates = event["event"] == "validating" and train.eval_batch_size > self.options.rows
            if validates or (stepped and train.micro_batch > self.options.rows):
                self.fail()

        self.inner.train(msgspec.structs.replace(work, emit=watch))

    def fail(self):
        if self.options.how == "killed":
            counter = pathlib.Path(os.environ["KERNEL_COUNTER"])  # what the kernel does when it kills for memory
            counter.write_text(f"oom_kill {int(counter.read_text().split()[1]) + 1}")
            os.kill(os.getpid(), signal.SIGKILL)
        import torch

        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
'''


@contextlib.contextmanager
def installed(site):
    """Installs the plugin in a folder, for this process and for workers."""
    (site / "plugin_frail.py").write_text(FRAIL)
    info = site / "plugin_frail-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-frail\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sftrun]\nfrail = plugin_frail\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{site}{os.pathsep}{ROOT}")
        patch.syspath_prepend(str(site))
        current.cache_clear()
        yield
    current.cache_clear()


def frail(**options):
    return {"use": "frail", "with": options}
