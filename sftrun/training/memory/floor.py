"""The memory of a training process before it reads a row: libraries, the tokenizer, kernels."""

import functools
import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import sftrun.data
from sftrun.training import pretrained

CONTEXT = 600 * 2**20  # bytes of a CUDA context with its kernels, outside torch's allocator; usual, not measured
KERNELS = 40 * 2**20  # bytes of code that the first training step maps on a CPU
UNKNOWN = 560 * 2**20  # bytes of the libraries, if the system does not report the memory of a process
STATUS = Path("/proc/self/status")
IMPORTED = ("sftrun.training.train", "torch.utils.tensorboard", "deepspeed")  # by a trainer, if installed


@functools.cache  # read once, so that earlier estimates do not count
def library_bytes(options: Any) -> int:
    """Returns the bytes of this process after the imports of a training; with a GPU, the bytes of its CUDA context."""
    if torch.cuda.is_available():
        return CONTEXT
    for name in IMPORTED:
        if find_spec(name):
            import_module(name)
    pretrained.load_tokenizer(sftrun.data.load_tokenizer(options).folder, options)
    return _resident() + KERNELS


def _resident() -> int:
    status = STATUS.read_text("utf-8") if os.path.exists(STATUS) else ""
    sizes = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")]
    return int(sizes[0]) * 1024 if sizes else UNKNOWN
