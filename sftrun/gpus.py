"""The GPUs that this process may use: asked once, by the first process, and passed on to its workers.

The driver's program answers in a moment. If it is missing (AMD, some containers), torch is asked in a process of its
own, because importing it takes seconds; only machines with the device files of a GPU pay for that.
"""

import functools
import glob
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from sftrun.errors import Problem

VARIABLE = "_SFTRUN_GPUS"  # environment variable that hands the GPUs down to workers
QUERY = ("--query-gpu=index,uuid,name,memory.total,memory.free", "--format=csv,noheader,nounits")
DRIVER_TIMEOUT = 30  # seconds; with many GPUs and no persistence daemon the driver takes several
TORCH_TIMEOUT = 180  # seconds to import torch from a slow disk
NVIDIA_FILES = "/dev/nvidia[0-9]*"
DEVICE_FILES = (NVIDIA_FILES, "/dev/kfd", "/dev/dxg")  # of NVIDIA, AMD, and Windows' subsystem for Linux
ASK_TORCH = """
import json, torch
def describe(number):
    free, total = torch.cuda.mem_get_info(number)
    return {"index": str(number), "name": torch.cuda.get_device_name(number), "total": total, "free": free}
print(json.dumps([describe(number) for number in range(torch.cuda.device_count())]))
"""


class Gpu(msgspec.Struct, frozen=True):
    """A GPU, with its total and free memory in bytes; None if the driver does not tell."""

    index: str
    name: str
    uuid: str = ""
    total: int | None = None
    free: int | None = None


Gpus = tuple[Gpu, ...]


def gpu_count() -> int:
    """Returns the number of GPUs that a process sees."""
    return len(visible_gpus())


def visible_gpus() -> Gpus:
    """Returns the GPUs that a process sees, in its order; their free memory is that of the first call."""
    handed_down = os.environ.get(VARIABLE)
    if handed_down is not None:
        return msgspec.json.decode(handed_down, type=Gpus)
    installed = _installed(_driver_program())
    return _seen_by_torch(*_visibility()) if installed is None else _choose_visible(installed)


def read_free_memory(gpu: Gpu) -> int | None:
    """Returns the free memory of a GPU in bytes, asked anew; None if the driver does not tell."""
    now = _ask_driver(_driver_program()) or ()
    return next((each.free for each in now if each.index == gpu.index), gpu.free)


def encode_for_workers() -> str:
    """Returns the value of VARIABLE for the environment of a worker."""
    return msgspec.json.encode(visible_gpus()).decode()


def check_torch(needed: bool) -> Iterator[Problem]:
    """Yields a problem if this machine has GPUs that the installed torch cannot use.

    It is an error if `needed`: the number of processes follows from the GPUs.
    """
    count = gpu_count()
    build = _cpu_build()
    if count and build:
        gpus = f"{count} GPU{'s' * (count > 1)} ({visible_gpus()[0].name})"
        message = f"this machine has {gpus}, and torch {build} is built for the CPU alone"
    elif not count and _visibility() == (None,) * 3 and (found := glob.glob(NVIDIA_FILES)):
        message = f"this machine has {found[0]}, and neither its driver nor torch finds a GPU"
    else:
        return
    hint = "install torch for the GPU (pytorch.org/get-started), or hide the GPU: CUDA_VISIBLE_DEVICES="
    if needed and count > 1:
        yield Problem(f"{message}; launch.processes is auto", path=("launch", "processes"), hint=hint)
    else:
        yield Problem(f"{message}: everything runs on the CPU", hint=hint, severity="warning")


def _driver_program() -> str | None:
    return shutil.which("nvidia-smi")


def _visibility() -> tuple[str | None, ...]:
    return tuple(os.environ.get(f"{name}_VISIBLE_DEVICES") for name in ("CUDA", "HIP", "ROCR"))


@functools.cache
def _installed(program: str | None) -> Gpus | None:
    """Returns every GPU of this machine; None if only torch can tell."""
    found = _ask_driver(program)
    if found is None and not any(glob.glob(each) for each in DEVICE_FILES):
        return ()
    return found


def _ask_driver(program: str | None) -> Gpus | None:
    """Returns what the driver's program reports; None if there is no program or it fails."""
    output = _run([program, *QUERY], DRIVER_TIMEOUT) if program else None
    if output is None:
        return None
    rows = [[part.strip() for part in line.split(",")] for line in output.splitlines()]
    return tuple(
        # a comma may be part of the name
        Gpu(row[0], ", ".join(row[2:-2]), row[1], _mebibytes(row[-2]), _mebibytes(row[-1]))
        for row in rows
        if len(row) >= 5 and row[0].isdecimal()
    )


def _mebibytes(text: str) -> int | None:
    return int(text) * 2**20 if text.isdecimal() else None  # `[N/A]` if the GPU shares the machine's memory


@functools.cache
def _seen_by_torch(*_visible: str | None) -> Gpus:
    """Returns the GPUs that torch sees with these environment variables."""
    output = _run([sys.executable, "-c", ASK_TORCH], TORCH_TIMEOUT)
    return msgspec.json.decode(output.splitlines()[-1], type=Gpus) if output else ()


def _run(command: Sequence[str], seconds: float) -> str | None:
    """Returns the output of a command; None if it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=True).stdout
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _choose_visible(installed: Gpus) -> Gpus:
    """Returns the GPUs that CUDA_VISIBLE_DEVICES names by number or by the start of their UUID.

    As in CUDA, the first name that is unknown ends the list. A part of a GPU (`MIG-…`), which the driver does not
    list, counts as the next whole GPU.
    """
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    if names is None:
        return installed
    chosen: list[Gpu] = []
    for name in map(str.strip, names.split(",")):
        gpu = next((each for each in installed if _is_named(each, name)), None)
        if name.startswith("MIG-") and len(chosen) < len(installed):
            gpu = installed[len(chosen)]
        if gpu is None:
            break
        chosen.append(gpu)
    return tuple(chosen)


def _is_named(gpu: Gpu, name: str) -> bool:
    return gpu.index == name or (name.startswith("GPU-") and gpu.uuid.startswith(name))


@functools.cache
def _cpu_build() -> str | None:
    """Returns the version of an installed torch that is built for the CPU alone, without importing it; else None."""
    spec = importlib.util.find_spec("torch")
    file = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    text = file.read_text("utf-8") if file and file.is_file() else ""
    values: dict[str, str] = dict(re.findall(r"^(\w+)(?:\s*:[^=\n]*)?\s*=\s*(.+?)\s*$", text, re.MULTILINE))
    if values.get("cuda") == values.get("hip") == "None":
        return values.get("__version__", "").strip("'\"")
    return None
