"""Changes that make a recipe fit into memory: first those that keep the training the same, then others."""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from sftrun.launch import topology
from sftrun.recipe.model import Recipe
from sftrun.registry import Registry
from sftrun.types import Footprint

Changes = dict[str, Any]  # values by keys like `train.batch_size`
Estimate = Callable[[Recipe], Footprint]


def peak_bytes(footprint: Footprint) -> int:
    """Returns the bytes of the phase that takes the most memory."""
    return max(sum(parts.values()) for parts in footprint.memory.values())


def apply_changes(recipe: Recipe, sets: Changes) -> Recipe:
    """Returns a recipe with other values."""
    for key, value in sets.items():
        part, _, name = key.rpartition(".")
        if part:
            inner = msgspec.structs.replace(getattr(recipe, part), **{name: value})
            recipe = msgspec.structs.replace(recipe, **{part: inner})
        else:
            recipe = msgspec.structs.replace(recipe, **{name: value})
    return recipe


def find_fitting_changes(
    recipe: Recipe, free: int, estimate: Estimate, registry: Registry
) -> Iterator[tuple[Changes, int]]:
    """Yields the smallest change of each family that fits into `free` bytes, with its peak in bytes.

    A family is a list of changes, in descending order of memory.
    """
    batch_matters = _fixed_bytes(estimate(recipe)) <= free  # else no batch is small enough
    families = list(_equivalent_families(recipe)) if batch_matters else []
    found = [_find_smallest(recipe, family, free, estimate) for family in families]
    if not any(found):
        families = list(_other_families(recipe, batch_matters, registry))
        found = [_find_smallest(recipe, family, free, estimate) for family in families]
    fits = [each for each in found if each]
    yield from fits
    yield from ((choose_automatically(recipe, sets), needed) for sets, needed in fits[:1] if "train.batch_size" in sets)


def choose_automatically(recipe: Recipe, sets: Changes) -> Changes:
    """Returns the same change with `batch_size: auto`, which measures and chooses when the recipe runs."""
    rest = {key: value for key, value in sets.items() if key not in ("train.batch_size", "train.grad_accum")}
    return {"train.batch_size": "auto", "train.effective_batch_size": topology.rows_per_step(recipe), **rest}


def _fixed_bytes(footprint: Footprint) -> int:
    """Returns the bytes that do not depend on the batch."""
    parts = ("libraries", "weights", "optimizer states", "gathered")
    return max(sum(each.get(part, 0) for part in parts) for each in footprint.memory.values())


def _find_smallest(recipe: Recipe, family: list[Changes], free: int, estimate: Estimate) -> tuple[Changes, int] | None:
    """Returns the first change of a family that fits, found by bisection; None if even the last does not fit."""
    needed = peak_bytes(estimate(apply_changes(recipe, family[-1])))
    if needed > free:
        return None
    low = 0
    high = len(family) - 1
    best = needed
    while low < high:
        middle = (low + high) // 2
        needed = peak_bytes(estimate(apply_changes(recipe, family[middle])))
        if needed <= free:
            high = middle
            best = needed
        else:
            low = middle + 1
    return family[high], best


def _equivalent_families(recipe: Recipe) -> Iterator[list[Changes]]:
    """Yields families of changes that keep the training the same, up to rounding."""
    smaller = list(_smaller_batches(recipe))
    if smaller:
        yield smaller
    if not recipe.train.gradient_checkpointing:
        checkpointing = {"train.gradient_checkpointing": True}
        yield [checkpointing, *({**sets, **checkpointing} for sets in smaller)]


def _other_families(recipe: Recipe, shorten: bool, registry: Registry) -> Iterator[list[Changes]]:
    """Yields families of changes to another training: an adapter, and shorter rows if `shorten` is True."""
    least = list(_equivalent_families(recipe))[-1:]
    smallest = least[0][-1] if least else {}
    if shorten and (lengths := list(_halve(recipe.model.max_seq_len))):
        yield [{**smallest, "model.max_seq_len": length} for length in lengths]
    for sets in suggest_adapters(recipe, registry):
        yield [sets, {**smallest, **sets}]


def _smaller_batches(recipe: Recipe) -> Iterator[Changes]:
    """Yields smaller micro-batches with more gradient accumulation: an optimizer step sees the same rows."""
    size = recipe.train.micro_batch
    for part in range(2, size + 1):
        if size % part == 0:
            yield {"train.batch_size": size // part, "train.grad_accum": recipe.train.grad_accum * part}


def split_step(recipe: Recipe) -> Iterator[Changes]:
    """Yields the ways to split an optimizer step into micro-batches, the smallest micro-batch first."""
    rows = topology.rows_per_step(recipe) // topology.world_size(recipe)
    for size in range(1, rows + 1):
        if rows % size == 0:
            yield {"train.batch_size": size, "train.grad_accum": rows // size}


def _halve(length: int) -> Iterator[int]:
    while (length := length // 2) >= 128:
        yield length


def suggest_adapters(recipe: Recipe, registry: Registry) -> Iterator[Changes]:
    """Yields tuning modes that take less memory than the recipe's, each with a backend that works on this machine."""
    for mode in _smaller_modes(recipe):
        yield from _with_backend(recipe, mode, registry)


def _smaller_modes(recipe: Recipe) -> list[str]:
    modes = ["full", "lora", "qlora"]
    return modes[modes.index(recipe.tuning.mode) + 1 :]


def _with_backend(recipe: Recipe, mode: str, registry: Registry) -> Iterator[Changes]:
    """Yields a mode with the recipe's backend, or else the first backend that supports it and estimates memory."""
    own = recipe.backend
    for name in dict.fromkeys([own.use, *registry.names("backend")]):
        sets = {"tuning.mode": mode, **({} if name == own.use else {"backend": name})}
        wanted = apply_changes(recipe, sets)
        try:
            backend = registry.create("backend", wanted.backend)
            problems = [*backend.check_recipe(wanted), *backend.check_machine(wanted)]
        except Exception:  # a plugin's backend does not work on this machine
            continue
        if hasattr(backend, "estimate") and not any(problem.severity == "error" for problem in problems):
            yield sets
            return
