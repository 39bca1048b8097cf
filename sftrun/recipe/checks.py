"""What no schema can say: keys of the recipe that depend on each other, and what components say of it."""

import difflib
import os
from collections.abc import Iterator
from typing import Any

import msgspec

from sftrun.errors import Problem, UserError
from sftrun.options import ENV, Use, changed_leaves, leaves
from sftrun.recipe.batch import disagreement
from sftrun.recipe.document import Document
from sftrun.recipe.model import Recipe
from sftrun.recipe.train_options import TrainOptions
from sftrun.registry import Registered, Registry


def of_recipe(document: Document) -> Iterator[Problem]:
    """Keys without effect, and keys that miss their other half."""
    for word in ("eval", "save"):
        yield from _steps(document, word)
    yield from _best(document)
    yield from _batch(document)
    yield from _adapter(document)


def _steps(document: Document, word: str) -> Iterator[Problem]:
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


def _best(document: Document) -> Iterator[Problem]:
    """The best checkpoint is told by validation losses, and has to be there."""
    stops, keeps = (document.find(("train", name)) for name in ("early_stopping", "keep_best"))
    stopping, keeping = stops is not None and stops.value is not None, keeps is not None and keeps.value is True
    name = "early_stopping" if stopping else "keep_best"
    path = ("train", name)
    if (stopping or keeping) and _strategy(document, "eval") == "no":
        message = f"train.{name} goes by the validation loss, and train.eval_strategy no computes none"
        yield Problem(message, document.key_place(path), path, "write eval_strategy: epoch, or steps")
    kept = keeping or (stopping and (keeps is None or keeps.value is None))
    if kept and _strategy(document, "save") == "no":
        message = f"train.{name} keeps the best checkpoint, and train.save_strategy no writes none"
        hint = "write save_strategy: epoch, or steps" + ("" if keeping else "; or keep_best: false")
        yield Problem(message, document.key_place(path), path, hint)


def _strategy(document: Document, word: str) -> Any:
    return _train(document, f"{word}_strategy")


def _batch(document: Document) -> Iterator[Problem]:
    """The rows of a step are said once; where they are said twice, both have to agree."""
    size, accum, rows = (_train(document, name) for name in ("batch_size", "grad_accum", "effective_batch_size"))
    if size == "auto":
        yield from _chosen(document, rows)
    elif all(isinstance(each, int) and each > 0 for each in (size, accum, rows)):
        path, wrong = ("train", "effective_batch_size"), disagreement(size, accum, _processes(document), rows)
        if wrong:
            yield Problem(wrong[0], document.place(path), path, wrong[1])


def _processes(document: Document) -> int | None:
    """Processes on all machines; None for `auto`, which the machine decides when it runs."""
    counts = [document.find(("launch", name)) for name in ("processes", "nodes")]
    values = [given.value if given else default for given, default in zip(counts, ("auto", 1), strict=True)]
    known = [each for each in values if isinstance(each, int) and each > 0]
    return known[0] * known[1] if len(known) == len(values) else None


def _chosen(document: Document, rows: Any) -> Iterator[Problem]:
    path, other = ("train", "batch_size"), ("train", "grad_accum")
    size, accum = document.find(path), document.find(other)
    if rows is None:
        message = "train.batch_size auto needs train.effective_batch_size, the rows of one optimizer step"
        yield Problem(message, document.place(path), path, "add effective_batch_size: 16, or another number")
    # where a recipe that this one extends has it, it is no mistake
    if size and accum and (accum.origin.is_override or accum.origin.shown == size.origin.shown):
        message = "train.grad_accum has no effect with train.batch_size auto, which chooses it"
        yield Problem(message, document.key_place(other), other, "leave it out, or write batch_size as a number")


def _train(document: Document, name: str) -> Any:
    given = document.find(("train", name))
    return given.value if given else getattr(TrainOptions(), name)


def _adapter(document: Document) -> Iterator[Problem]:
    mode, lora = document.find(("tuning", "mode")), document.find(("tuning", "lora"))
    # Where the adapter comes from a recipe that this one extends, switching it off is no mistake.
    if mode and lora and mode.value == "full" and mode.origin.shown == lora.origin.shown:
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
    except Exception:  # said by `of_component`
        return
    yield from _not_honoured(recipe, backend)
    if recipe.train.batch_size == "auto" and not hasattr(backend, "estimate"):
        message = f"the backend {use.use} cannot say what a batch takes, so train.batch_size auto has nothing to go by"
        hint = "write batch_size and grad_accum as numbers; sftrun plan --probe measures whether they fit"
        yield Problem(message, path=("train", "batch_size"), hint=hint)


def _not_honoured(recipe: Recipe, backend: Any) -> Iterator[Problem]:
    """Yields the keys that a recipe sets, and its backend does not act on."""
    name, honours = recipe.backend.use, frozenset(getattr(backend, "honours", ()))
    known = {f"{part}.{key}" for part in BACKEND_PARTS for key, _ in leaves(getattr(recipe, part))}
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
    """What a component says of the recipe: nothing where it has no say, or needs a variable that is not set here."""
    item = registry.get(kind, use.use)
    if _unset(use.with_):
        return []
    try:
        component = registry.create(kind, use)
        found = registry.warnings(kind, use.use)
        return [*found, *component.check_recipe(recipe)] if hasattr(component, "check_recipe") else found
    except UserError as error:
        return list(error.problems)
    except ImportError as error:  # what is missing here may be there where the recipe runs
        message = f"the {kind} '{use.use}' cannot be checked here: {error}"
        return [Problem(message, severity="warning")]
    except Exception as error:
        return [_failed(item, error)]


def _failed(item: Registered, error: Exception) -> Problem:
    message = f"the {item.kind} '{item.name}' failed while checking the recipe: {type(error).__name__}: {error}"
    return Problem(message, hint=f"this is a bug of {item.distribution} {item.version}, not of the recipe")


def _unset(value: Any) -> bool:
    """Whether any `${env:NAME}` below a value has no variable."""
    if isinstance(value, dict | list):
        return any(map(_unset, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str) and any(name not in os.environ for name in ENV.findall(value))
