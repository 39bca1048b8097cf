"""Functions that `sftrun plan` and `batch_size: auto` call in a worker process: estimate memory, or measure it."""

import os
import sys
from pathlib import Path
from typing import Any

from sftrun import events
from sftrun.kinds import Emit, Estimating, Training
from sftrun.launch import topology
from sftrun.memory import batches, changes
from sftrun.memory.machine import read_machine
from sftrun.recipe.model import Recipe
from sftrun.registry import current
from sftrun.runs.directory import RunDir
from sftrun.types import Footprint

STATUS = Path("/proc/self/status")
PEAK_FILE = "peak-{}.json"  # written by each rank that is measured; {} is its rank


def estimate_in_worker(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    """Emits the event `Estimated`: parameters, memory, and changes that make the recipe fit if it does not."""
    train = batches.read_row_lengths(run.prepared, "train", recipe.packing.strategy != "none")
    estimate = _make_estimate(run, train)
    footprint = estimate(recipe)
    here = read_machine(footprint.device)
    needed = changes.peak_bytes(footprint)
    found = [] if needed <= here.free else changes.find_fitting_changes(recipe, here.free, estimate, current())
    emit(
        events.Estimated(
            parameters={"trained": footprint.trained, "frozen": footprint.frozen},
            device={"kind": footprint.device, "name": here.name, "total": here.total, "free": here.free},
            memory=footprint.memory,
            peak=needed,
            checkpoint=footprint.checkpoint,
            changes=[_describe_change(sets, size, train) for sets, size in found],
            notes=footprint.notes,
        )
    )


def estimate_sizes_in_worker(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    """Emits the event `EstimatedBatches`: micro-batches with peaks in bytes, up to the first that does not fit."""
    train = batches.read_row_lengths(run.prepared, "train", recipe.packing.strategy != "none")
    estimate = _make_estimate(run, train)
    peaks: list[tuple[int, int]] = []
    for sets in changes.split_step(recipe):
        footprint = estimate(changes.apply_changes(recipe, sets))
        sharing = topology.local_world_size(recipe) if footprint.device == "cpu" else 1  # each rank has its own GPU
        free = read_machine(footprint.device).free // sharing
        peaks.append((sets["train.batch_size"], changes.peak_bytes(footprint)))
        if peaks[-1][1] > free:
            break
    emit(events.EstimatedBatches(free=free, peaks=peaks))


def _make_estimate(run: RunDir, train: batches.RowLengths | None) -> changes.Estimate:
    """Returns a function that asks the backend of a recipe for the memory of its largest batches."""
    val = batches.read_row_lengths(run.prepared, "val")

    def estimate(wanted: Recipe) -> Footprint:
        backend = current().create("backend", wanted.backend)
        evaluation = batches.largest_evaluation_batch(wanted, val) if val or train is None else None
        shape = batches.largest_training_batch(wanted, train)
        footprint: Footprint = backend.estimate(Estimating(recipe=wanted, training=shape, evaluation=evaluation))
        return footprint

    return estimate


def _describe_change(sets: changes.Changes, size: int, train: batches.RowLengths | None) -> dict[str, Any]:
    found: dict[str, Any] = {"set": sets, "peak": size}
    if "model.max_seq_len" in sets and train is not None:
        found["rows_too_long"] = int((train.lengths > sets["model.max_seq_len"]).sum())
    return found


def measure_in_worker(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    """Trains, and writes the peak memory of this process or of its GPU to PEAK_FILE."""
    cpu = read_machine("cpu").free // int(os.environ.get("WORLD_SIZE", "1"))  # before anything is loaded
    gpu = read_machine("cuda").free
    current().create("backend", recipe.backend).train(Training(recipe=recipe, run=run, emit=emit))
    run.write_json(PEAK_FILE.format(os.environ.get("RANK", "0")), _read_peak(cpu, gpu))


def _read_peak(cpu: int, gpu: int) -> dict[str, Any]:
    """Returns the device, its peak in bytes, and the bytes that it had; `cpu` and `gpu` were free before training."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        room = gpu or total  # a driver may not tell
        outside = max(room - free - torch.cuda.memory_reserved(), 0)  # the CUDA context
        return {"kind": "cuda", "peak": torch.cuda.max_memory_reserved() + outside, "room": room}
    if STATUS.is_file():
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return {"kind": "cpu", "peak": int(lines["VmHWM"].split()[0]) * 1024, "room": cpu}
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return {"kind": "cpu", "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "room": cpu}
