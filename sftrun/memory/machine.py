"""The memory of this machine, read from the system and the GPU driver."""

import os
import subprocess
from pathlib import Path

import msgspec

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
    query = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
        name, total, free = _first_visible(output.splitlines()).rsplit(",", 2)
        return Machine(name, int(total) * 2**20, int(free) * 2**20)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _first_visible(lines: list[str]) -> str:
    """Returns name and memory of the first GPU in CUDA_VISIBLE_DEVICES, found by number or by the start of its UUID.

    For a part of a GPU (`MIG-…`), which the driver does not list, returns name and memory of the first whole GPU.
    """
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    gpus = [[part.strip() for part in line.split(",", 2)] for line in lines]
    if wanted.startswith("MIG-"):
        return gpus[0][2]
    return next((rest for index, uuid, rest in gpus if wanted == index or _starts_with(uuid, wanted)), "")


def _starts_with(uuid: str, wanted: str) -> bool:
    return wanted.startswith("GPU-") and uuid.startswith(wanted)


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
