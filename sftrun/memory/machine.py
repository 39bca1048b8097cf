"""The memory that this machine has, asked of the system and of the driver."""

import os
import subprocess
from pathlib import Path

import msgspec

GROUPS = (  # of Linux control groups: the limit, and what is used of it
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


class Machine(msgspec.Struct, frozen=True):
    """Where training runs, with bytes of memory in all and free."""

    name: str
    total: int
    free: int


def machine(device: str) -> Machine:
    """This machine's memory for a device, `cpu` or `cuda`; of several GPUs that of the first that a process sees."""
    return (_gpu() if device == "cuda" else None) or _cpu()


def _gpu() -> Machine | None:
    query = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
        name, total, free = _first_seen(said.splitlines()).rsplit(",", 2)
        return Machine(name, int(total) * 2**20, int(free) * 2**20)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _first_seen(lines: list[str]) -> str:
    """Name and memory of the first GPU in CUDA_VISIBLE_DEVICES: by its number, or by how its UUID begins.

    Of a part of a GPU (`MIG-…`), which the driver does not list, those of the first whole one.
    """
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    gpus = [[part.strip() for part in line.split(",", 2)] for line in lines]
    if wanted.startswith("MIG-"):
        return gpus[0][2]
    return next((rest for index, uuid, rest in gpus if wanted == index or _begins(uuid, wanted)), "")


def _begins(uuid: str, wanted: str) -> bool:
    return wanted.startswith("GPU-") and uuid.startswith(wanted)


def _cpu() -> Machine:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = total
    if MEMINFO.is_file():
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line)
        free = int(lines["MemAvailable"].split()[0]) * 1024
    for limit, used in map(_limited, GROUPS):
        total, free = min(total, limit), min(free, max(limit - used, 0))
    return Machine("CPU", total, free)


def _limited(names: tuple[str, str]) -> tuple[int, int]:
    """A container's limit and what it uses; no limit where there is none."""
    try:
        limit, used = (int((CGROUP / name).read_text()) for name in names)
        return limit, used
    except (OSError, ValueError):  # `max`, or no such control group
        return 2**63, 0
