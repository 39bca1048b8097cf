"""Changes to a recipe that make it fit: the same training in smaller pieces first, then other training."""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from sftrun.launch import topology
from sftrun.recipe.model import Recipe
from sftrun.registry import Registry
from sftrun.types import Footprint

Sets = dict[str, Any]
Ask = Callable[[Recipe], Footprint]


def peak(footprint: Footprint) -> int:
    """Bytes at the moment that takes most."""
    return max(sum(parts.values()) for parts in footprint.memory.values())


def changed(recipe: Recipe, sets: Sets) -> Recipe:
    """A recipe with other values, by keys like `train.batch_size`."""
    for key, value in sets.items():
        part, _, name = key.rpartition(".")
        if part:
            inner = msgspec.structs.replace(getattr(recipe, part), **{name: value})
            recipe = msgspec.structs.replace(recipe, **{part: inner})
        else:
            recipe = msgspec.structs.replace(recipe, **{name: value})
    return recipe


def fitting(recipe: Recipe, free: int, ask: Ask, registry: Registry) -> Iterator[tuple[Sets, int]]:
    """Of each family of changes the smallest that fits, with its peak in bytes; a family is in order of memory."""
    small = _held(ask(recipe)) <= free  # else it is too much whatever the batch is
    found = [_smallest(recipe, family, free, ask) for family in _same(recipe)] if small else []
    if not any(found):
        found = [_smallest(recipe, family, free, ask) for family in _other(recipe, small, registry)]
    fits = [each for each in found if each]
    yield from fits
    yield from ((auto(recipe, sets), needed) for sets, needed in fits[:1] if "train.batch_size" in sets)


def auto(recipe: Recipe, sets: Sets) -> Sets:
    """The same change, with a batch that is chosen by what is measured when the recipe is run."""
    rest = {key: value for key, value in sets.items() if key not in ("train.batch_size", "train.grad_accum")}
    return {"train.batch_size": "auto", "train.effective_batch_size": topology.rows(recipe), **rest}


def _held(footprint: Footprint) -> int:
    """Bytes that are there whatever the batch is."""
    parts = ("libraries", "weights", "optimizer states", "gathered")
    return max(sum(each.get(part, 0) for part in parts) for each in footprint.memory.values())


def _smallest(recipe: Recipe, family: list[Sets], free: int, ask: Ask) -> tuple[Sets, int] | None:
    """The first change of a family that fits, by bisection; the last one takes least."""
    needed = peak(ask(changed(recipe, family[-1])))
    if needed > free:
        return None
    low, high, best = 0, len(family) - 1, needed
    while low < high:
        middle = (low + high) // 2
        needed = peak(ask(changed(recipe, family[middle])))
        if needed <= free:
            high, best = middle, needed
        else:
            low = middle + 1
    return family[high], best


def _same(recipe: Recipe) -> Iterator[list[Sets]]:
    """Changes after which the training is the same, but for rounding."""
    smaller = list(_smaller(recipe))
    if smaller:
        yield smaller
    if not recipe.train.gradient_checkpointing:
        checkpointing = {"train.gradient_checkpointing": True}
        yield [checkpointing, *({**sets, **checkpointing} for sets in smaller)]


def _other(recipe: Recipe, shorter: bool, registry: Registry) -> Iterator[list[Sets]]:
    """Changes after which it is another training: shorter rows, an adapter."""
    least = list(_same(recipe))[-1:]
    most = least[0][-1] if least else {}
    if shorter and (lengths := list(_shorter(recipe.model.max_seq_len))):
        yield [{**most, "model.max_seq_len": length} for length in lengths]
    for sets in adapters(recipe, registry):
        yield [sets, {**most, **sets}]


def _smaller(recipe: Recipe) -> Iterator[Sets]:
    """Smaller batches of which more are summed: what one optimizer step sees stays the same."""
    size = recipe.train.micro_batch
    for part in range(2, size + 1):
        if size % part == 0:
            yield {"train.batch_size": size // part, "train.grad_accum": recipe.train.grad_accum * part}


def splits(recipe: Recipe) -> Iterator[Sets]:
    """Ways to give an optimizer step its rows, the fewest at once first."""
    rows = topology.rows(recipe) // topology.size(recipe)
    for size in range(1, rows + 1):
        if rows % size == 0:
            yield {"train.batch_size": size, "train.grad_accum": rows // size}


def _shorter(length: int) -> Iterator[int]:
    while (length := length // 2) >= 128:
        yield length


def adapters(recipe: Recipe, registry: Registry) -> Iterator[Sets]:
    """Modes that train fewer weights, or hold them in fewer bits, each with a backend that can do it here."""
    for mode in _modes(recipe):
        yield from _with_backend(recipe, mode, registry)


def _modes(recipe: Recipe) -> list[str]:
    modes = ["full", "lora", "qlora"]
    return modes[modes.index(recipe.tuning.mode) + 1 :]


def _with_backend(recipe: Recipe, mode: str, registry: Registry) -> Iterator[Sets]:
    """Another mode, with the recipe's backend or else the first that can do it and be planned."""
    own = recipe.backend
    for name in dict.fromkeys([own.use, *registry.names("backend")]):
        sets = {"tuning.mode": mode, **({} if name == own.use else {"backend": name})}
        wanted = changed(recipe, sets)
        try:
            backend = registry.create("backend", wanted.backend)
            problems = [*backend.check_recipe(wanted), *backend.check_machine(wanted)]
        except Exception:  # a backend of a plugin that does not work here
            continue
        if hasattr(backend, "estimate") and not any(problem.severity == "error" for problem in problems):
            yield sets
            return
