"""What a worker process does for a plan: the backend estimates, or trains a few steps."""

import os
import sys
from pathlib import Path
from typing import Any

from sftrun import events
from sftrun.kinds import Emit, Estimating, Training
from sftrun.launch import topology
from sftrun.memory import batches, changes
from sftrun.memory.machine import machine
from sftrun.recipe.model import Recipe
from sftrun.registry import current
from sftrun.runs.directory import RunDir
from sftrun.types import Footprint

STATUS = Path("/proc/self/status")
PEAK = "peak-{}.json"  # what each process that is measured writes


def estimate_here(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    """Emits the event `Estimated`: parameters, memory, whether it fits, and changes where it does not."""
    train = batches.read(run.prepared, "train", recipe.packing.strategy != "none")
    ask = _asking(run, train)
    footprint = ask(recipe)
    here, needed = machine(footprint.device), changes.peak(footprint)
    found = [] if needed <= here.free else changes.fitting(recipe, here.free, ask, current())
    emit(
        events.Estimated(
            parameters={"trained": footprint.trained, "frozen": footprint.frozen},
            device={"kind": footprint.device, "name": here.name, "total": here.total, "free": here.free},
            memory=footprint.memory,
            peak=needed,
            checkpoint=footprint.checkpoint,
            changes=[_change(sets, size, train) for sets, size in found],
            notes=footprint.notes,
        )
    )


def sizes_here(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    """Emits the event `EstimatedBatches`: rows of a forward pass with their peak in bytes, up to the first that would
    not fit.
    """
    ask = _asking(run, batches.read(run.prepared, "train", recipe.packing.strategy != "none"))
    peaks: list[tuple[int, int]] = []
    for sets in changes.splits(recipe):
        footprint = ask(changes.changed(recipe, sets))
        free = machine(footprint.device).free // (topology.processes(recipe) if footprint.device == "cpu" else 1)
        peaks.append((sets["train.batch_size"], changes.peak(footprint)))
        if peaks[-1][1] > free:
            break
    emit(events.EstimatedBatches(free=free, peaks=peaks))


def _asking(run: RunDir, train: batches.Rows | None) -> changes.Ask:
    """What a recipe's backend says that its largest batches take."""
    val = batches.read(run.prepared, "val")

    def ask(wanted: Recipe) -> Footprint:
        backend = current().create("backend", wanted.backend)
        evaluation = batches.evaluation(wanted, val) if val or train is None else None
        shape = batches.training(wanted, train)
        found: Footprint = backend.estimate(Estimating(recipe=wanted, training=shape, evaluation=evaluation))
        return found

    return ask


def _change(sets: changes.Sets, size: int, train: batches.Rows | None) -> dict[str, Any]:
    found: dict[str, Any] = {"set": sets, "peak": size}
    if "model.max_seq_len" in sets and train is not None:
        found["rows_too_long"] = int((train.lengths > sets["model.max_seq_len"]).sum())
    return found


def probe_here(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    """Trains, and writes down the most memory that this process, or its GPU, had in use."""
    free = machine("cpu").free // int(os.environ.get("WORLD_SIZE", "1"))  # as long as little is loaded
    current().create("backend", recipe.backend).train(Training(recipe=recipe, run=run, emit=emit))
    run.write_json(PEAK.format(os.environ.get("RANK", "0")), _most(free))


def _most(room: int) -> dict[str, Any]:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        outside = max(total - free - torch.cuda.memory_reserved(), 0)  # the context, and other processes
        return {"kind": "cuda", "peak": torch.cuda.max_memory_reserved() + outside, "room": total}
    if STATUS.is_file():
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return {"kind": "cpu", "peak": int(lines["VmHWM"].split()[0]) * 1024, "room": room}
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return {"kind": "cpu", "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "room": room}
