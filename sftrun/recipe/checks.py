"""Checks that a schema cannot express: keys that depend on each other, and the checks of components."""

import difflib
import os
from collections.abc import Iterator
from typing import Any

import msgspec

from sftrun.errors import Problem, UserError
from sftrun.hub import is_commit
from sftrun.options import ENV, Options, Use, changed_leaves, is_path, usual_leaves
from sftrun.recipe.document import Document
from sftrun.recipe.model import Recipe
from sftrun.recipe.train_options import TrainOptions
from sftrun.registry import Registered, Registry, describe_exception, plugin_code
from sftrun.tiny import NAME as TINY


def key_problems(document: Document) -> Iterator[Problem]:
    """Yields problems of keys that have no effect, contradict another key, or need another key."""
    yield from _revision_problems(document)
    yield from _kernel_problems(document)
    for word in ("eval", "save"):
        yield from _steps_problems(document, word)
    yield from _best_checkpoint_problems(document)
    yield from _batch_problems(document)
    yield from _adapter_problems(document)


def _revision_problems(document: Document) -> Iterator[Problem]:
    """Yields problems of a revision that has no effect, or that is not enough to trust code."""
    paths = [("model", key) for key in ("name", "revision", "trust_remote_code")]
    name, revision, trust = (node.value if (node := document.find(path)) else None for path in paths)
    if not isinstance(name, str) or not isinstance(revision, str | None):
        return
    if is_path(name) or name == TINY:
        if revision is not None:
            message = f"model.revision has no effect on {name}, which is not on the Hub"
            yield Problem(message, document.key_place(paths[1]), paths[1], "leave it out", severity="warning")
    elif trust is True and not is_commit(revision):
        message = "model.trust_remote_code runs code of the Hub, and a branch or a tag may have other code tomorrow"
        hint = "read the code, and write its full commit of 40 characters as model.revision"
        yield Problem(message, document.key_place(paths[2]), paths[2], hint)


def _kernel_problems(document: Document) -> Iterator[Problem]:
    """Yields a problem if code of the Hub is wanted without its commit, or a commit without that code."""
    path, other = ("train", "attention_revision"), ("train", "attention")
    revision = _train_value(document, path[1])
    if not isinstance(revision, str | None):
        return
    if _train_value(document, other[1]) == "hub":
        if not is_commit(revision):
            message = "train.attention hub runs native code of the Hub, and needs its full commit"
            hint = "write as attention_revision the 40 characters of a commit of kernels-community/flash-attn2"
            yield Problem(message, document.place(path if revision else other), path, hint)
    elif revision is not None:
        message = "train.attention_revision has no effect without train.attention hub"
        yield Problem(message, document.key_place(path), path, "write attention: hub, or leave it out")


def _steps_problems(document: Document, word: str) -> Iterator[Problem]:
    defaults = TrainOptions()
    strategy_path, steps_path = ("train", f"{word}_strategy"), ("train", f"{word}_steps")
    given, steps = document.find(strategy_path), document.find(steps_path)
    strategy = given.value if given else getattr(defaults, strategy_path[1])
    has_steps = steps is not None and isinstance(steps.value, int)
    if strategy == "steps" and not has_steps:
        message, hint = f"train.{word}_strategy steps needs train.{word}_steps", f"add {word}_steps: 100"
        yield Problem(message, document.place(strategy_path), strategy_path, hint)
    elif strategy in ("no", "epoch") and has_steps:
        message = f"train.{word}_steps has no effect with train.{word}_strategy {strategy}"
        yield Problem(message, document.key_place(steps_path), steps_path, f"write {word}_strategy: steps")


def _best_checkpoint_problems(document: Document) -> Iterator[Problem]:
    """Yields problems if the best checkpoint is wanted, but no validation loss or no checkpoint will exist."""
    stops, keeps = (document.find(("train", name)) for name in ("early_stopping", "keep_best"))
    stopping = stops is not None and stops.value is not None
    keeping = keeps is not None and keeps.value is True
    name = "early_stopping" if stopping else "keep_best"
    path = ("train", name)
    if (stopping or keeping) and _strategy(document, "eval") == "no":
        message = f"train.{name} needs the validation loss, but train.eval_strategy no computes none"
        yield Problem(message, document.key_place(path), path, "write eval_strategy: epoch or steps")
    keeps_best = keeping or (stopping and (keeps is None or keeps.value is None))
    if keeps_best and _strategy(document, "save") == "no":
        message = f"train.{name} needs checkpoints, but train.save_strategy no writes none"
        hint = "write save_strategy: epoch or steps" + ("" if keeping else ", or keep_best: false")
        yield Problem(message, document.key_place(path), path, hint)


def _strategy(document: Document, word: str) -> Any:
    return _train_value(document, f"{word}_strategy")


def _batch_problems(document: Document) -> Iterator[Problem]:
    """Yields a problem if batch_size, grad_accum and effective_batch_size contradict each other."""
    names = ("batch_size", "grad_accum", "effective_batch_size")
    micro_batch, accum, effective = (_train_value(document, name) for name in names)
    if micro_batch == "auto":
        yield from _auto_batch_problems(document, effective)
    elif all(isinstance(each, int) and each > 0 for each in (micro_batch, accum, effective)):
        mismatch = batch_mismatch(micro_batch, accum, _world_size(document), effective)
        if mismatch:
            path = ("train", "effective_batch_size")
            yield Problem(mismatch[0], document.place(path), path, mismatch[1])


def batch_mismatch(micro_batch: int, accum: int, world_size: int | None, effective: int) -> tuple[str, str] | None:
    """Returns the message and hint for an effective batch size that the other numbers do not give; None if they do.

    `world_size` is None if only the machine that trains knows it; then any whole number of processes is accepted.
    """
    rows = micro_batch * accum * (world_size or 1)
    if effective == rows or (world_size is None and effective % rows == 0):
        return None
    names, values = "batch_size × grad_accum", f"{micro_batch} × {accum}"
    if world_size and world_size > 1:
        names, values = f"{names} × processes", f"{values} × {world_size}"
    message = f"train.effective_batch_size is {effective}, but {names} is {values} = {rows}"
    return message, f"write batch_size: auto, which sets both, or {_split(effective // (world_size or 1), micro_batch)}"


def _split(rows: int, largest: int) -> str:
    """Returns the largest micro-batch up to `largest` that divides `rows`, and the accumulation that goes with it."""
    micro_batch = max(each for each in range(1, max(min(largest, rows), 1) + 1) if rows % each == 0)
    return f"batch_size: {micro_batch} and grad_accum: {rows // micro_batch}"


def _world_size(document: Document) -> int | None:
    """Returns the number of processes on all nodes; None if launch.processes is `auto`."""
    counts = [document.find(("launch", name)) for name in ("processes", "nodes")]
    values = [given.value if given else default for given, default in zip(counts, ("auto", 1), strict=True)]
    known = [each for each in values if isinstance(each, int) and each > 0]
    return known[0] * known[1] if len(known) == len(values) else None


def _auto_batch_problems(document: Document, effective: Any) -> Iterator[Problem]:
    path, other = ("train", "batch_size"), ("train", "grad_accum")
    micro_batch, accum = document.find(path), document.find(other)
    if effective is None:
        message = "train.batch_size auto needs train.effective_batch_size (the rows of one optimizer step)"
        yield Problem(message, document.place(path), path, "add effective_batch_size: 16, or another number")
    # a grad_accum from a base recipe is not a mistake
    if micro_batch and accum and (accum.origin.is_override or accum.origin.name == micro_batch.origin.name):
        message = "train.grad_accum has no effect with train.batch_size auto, which sets it"
        yield Problem(message, document.key_place(other), other, "remove it, or write batch_size as a number")


def _train_value(document: Document, name: str) -> Any:
    given = document.find(("train", name))
    return given.value if given else getattr(TrainOptions(), name)


def _adapter_problems(document: Document) -> Iterator[Problem]:
    mode, lora = document.find(("tuning", "mode")), document.find(("tuning", "lora"))
    # switching off the adapter of a base recipe is not a mistake
    if mode and lora and mode.value == "full" and mode.origin.name == lora.origin.name:
        path = ("tuning", "lora")
        message = "tuning.lora has no effect with tuning.mode full"
        yield Problem(message, document.key_place(path), path, severity="warning")


def of_backend(recipe: Recipe, registry: Registry) -> Iterator[Problem]:
    """Yields what the recipe asks of a backend that does not offer it."""
    use = recipe.backend
    if _unset(use.with_):
        return
    try:
        backend = registry.create("backend", use)
    except BaseException as error:  # said by `of_component`
        if isinstance(error, KeyboardInterrupt):
            raise
        return
    yield from _not_honoured(recipe, backend)
    if recipe.train.batch_size == "auto" and not hasattr(backend, "estimate"):
        message = f"train.batch_size auto needs a backend that estimates memory, and the backend {use.use} does not"
        hint = "write batch_size and grad_accum as numbers; sftrun plan --probe measures whether they fit"
        yield Problem(message, path=("train", "batch_size"), hint=hint)


def _not_honoured(recipe: Recipe, backend: Any) -> Iterator[Problem]:
    """Yields the keys that a recipe sets, and its backend does not act on."""
    name, honours = recipe.backend.use, frozenset(getattr(backend, "honours", ()))
    options: dict[str, type[Options]] = {part: type(getattr(recipe, part)) for part in BACKEND_PARTS}
    known = {f"{part}.{key}" for part, kind in options.items() for key in usual_leaves(kind)}
    for key in sorted(honours - known):
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"it may name keys of {', '.join(BACKEND_PARTS)}"
        yield Problem(f"the backend {name} honours {key!r}, which is no recipe key", path=("backend",), hint=hint)
    for part in BACKEND_PARTS:
        for key, value in changed_leaves(getattr(recipe, part)):
            path = f"{part}.{key}"
            if path not in honours | CORE_KEYS:
                message = f"the backend {name} does not act on {path}: {_shown(value)} would have no effect"
                yield Problem(
                    message, path=tuple(path.split(".")), hint="leave it out, or use a backend that honours it"
                )


BACKEND_PARTS = ("train", "tuning", "launch", "packing")  # the keys of a recipe that a backend has to act on
CORE_KEYS = {  # sftrun itself acts on these, with any backend
    *("train.batch_size", "train.effective_batch_size", "train.on_oom"),
    *("launch.processes", "launch.nodes", "launch.restarts"),
}


def _shown(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def of_component(kind: str, use: Use, recipe: Recipe, registry: Registry) -> list[Problem]:
    """Returns what a component's own check says; nothing if it has no check or needs a variable that is not set."""
    item = registry.get(kind, use.use)
    if _unset(use.with_):
        return []
    try:
        with plugin_code() as interrupted:
            component = registry.create(kind, use)
            found = registry.warnings(kind, use.use)
            return [*found, *problems_of(component, "check_recipe", recipe)]
    except UserError as error:
        return list(error.problems)
    except ImportError as error:  # the package may be installed where the recipe runs
        message = f"the {kind} '{use.use}' cannot be checked here: {error}"
        return [Problem(message, severity="warning")]
    except BaseException as error:
        if interrupted:
            raise
        return [failed_check(item, error, "checking the recipe")]


def problems_of(component: Any, check: str, *given: Any) -> list[Problem]:
    """Returns what an optional check of a component says; raises TypeError if it yields anything but problems."""
    found = list(getattr(component, check)(*given)) if hasattr(component, check) else []
    for each in found:
        if not isinstance(each, Problem):
            raise TypeError(f"{check} must yield sftrun.Problem, not {type(each).__name__}")
    return found


def failed_check(item: Registered, error: BaseException, doing: str) -> Problem:
    """Returns the problem of a component whose check failed."""
    message = f"the {item.kind} '{item.name}' failed while {doing}: {describe_exception(error)}"
    return Problem(message, hint=f"this is a bug in {item.distribution} {item.version}, not in the recipe")


def _unset(value: Any) -> bool:
    """Returns True if a `${env:NAME}` anywhere below a value names a variable that is not set."""
    if isinstance(value, dict | list):
        return any(map(_unset, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str) and any(name not in os.environ for name in ENV.findall(value))
