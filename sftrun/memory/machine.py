"""The memory of this machine, read from the system and the GPU driver."""

import os
from pathlib import Path

import msgspec

from sftrun import gpus

CGROUP_FILES = (  # in a Linux control group: the limit, and the bytes in use; versions 2 and 1
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


class Machine(msgspec.Struct, frozen=True):
    """The device that trains, with its total and free memory in bytes."""

    name: str
    total: int
    free: int


def read_machine(device: str) -> Machine:
    """Returns the memory of `cpu` or `cuda`; for `cuda`, of the first visible GPU, and of the CPU without a GPU."""
    return (_gpu() if device == "cuda" else None) or _cpu()


def _gpu() -> Machine | None:
    gpu = next(iter(gpus.visible_gpus()), None)
    if gpu is None:
        return None
    if gpu.total is None:  # it shares the memory of the machine
        return msgspec.structs.replace(_cpu(), name=gpu.name)
    return Machine(gpu.name, gpu.total, gpus.read_free_memory(gpu) or 0)


def _cpu() -> Machine:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = total
    if MEMINFO.is_file():
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line)
        free = int(lines["MemAvailable"].split()[0]) * 1024
    for limit, used in map(_read_limit, CGROUP_FILES):
        total, free = min(total, limit), min(free, max(limit - used, 0))
    return Machine("CPU", total, free)


def _read_limit(names: tuple[str, str]) -> tuple[int, int]:
    """Returns a container's memory limit and its bytes in use; a huge limit if there is none."""
    try:
        limit, used = (int((CGROUP / name).read_text()) for name in names)
        return limit, used
    except (OSError, ValueError):  # the limit is `max`, or there is no such control group
        return 2**63, 0
