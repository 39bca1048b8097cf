"""Recipe keys that unsloth acts on, and its limits; it is not imported, so that a fallback runs without its patches."""

import ast
import json
from collections.abc import Collection, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import sftrun
import sftrun.data
from sftrun.options import changed_leaves
from sftrun.training import limits

HINT = "use the backend hf, or set backend.with.fallback: hf"
# Recipe keys that unsloth itself acts on. Kernels, compilation and offloading are its own; rows are padded, not packed.
HONOURS = limits.TRAINER_KEYS | {
    *("tuning.lora.r", "tuning.lora.alpha", "tuning.lora.dropout", "tuning.lora.target_modules"),
    *("tuning.lora.rslora", "tuning.lora.dora", "tuning.lora.init"),
}


def mistakes(recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
    """Yields what no backend could do."""
    yield from limits.check_recipe(recipe)
    if recipe.tuning.mode != "full" and recipe.tuning.lora.target_modules == []:
        path = ("tuning", "lora", "target_modules")
        yield sftrun.Problem("target_modules must name at least one module", path=path)


def beyond(recipe: sftrun.Recipe, honours: Collection[str]) -> Iterator[sftrun.Problem]:
    """Yields the keys out of `honours` that a recipe sets, and unsloth does not act on: its fallback has to train."""
    for part in ("train", "tuning", "launch", "packing"):
        for key, _ in changed_leaves(getattr(recipe, part)):
            path = f"{part}.{key}"
            if path in honours and path not in HONOURS:
                yield sftrun.Problem(f"unsloth does not act on {path}", path=tuple(path.split(".")))


def of_values(recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
    """Yields values that unsloth cannot train with, of keys that it acts on."""
    for name in ("processes", "nodes"):
        count = getattr(recipe.launch, name)
        if count not in (1, "auto"):
            message = f"the backend unsloth trains on one GPU, in one process; launch.{name} is {count}"
            yield sftrun.Problem(message, path=("launch", name), hint=f"leave it out, or {HINT}")
    if recipe.tuning.mode != "full":
        for key, message in _of_adapter(recipe.tuning.lora):
            yield sftrun.Problem(message, path=("tuning", "lora", key), hint=f"change it, or {HINT}")


def _of_adapter(lora: Any) -> Iterator[tuple[str, str]]:
    modules = lora.target_modules
    if modules == "auto":
        yield "target_modules", "unsloth does not leave the choice of modules to peft"
    for name in sorted({"lm_head", "embed_tokens"} & set(modules)) if isinstance(modules, list) else ():
        yield "target_modules", f"unsloth trains {name} in full, not with an adapter"
    if lora.init not in ("default", "gaussian"):
        yield "init", f"the backend unsloth does not save what init {lora.init} takes out of the base"


def of_machine(recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
    """Yields limits of this machine."""
    count = sftrun.gpu_count()
    if count > 1:
        message = f"the backend unsloth trains on one GPU, in one process; {count} are visible here"
        yield sftrun.Problem(message, path=("backend",), hint=f"export CUDA_VISIBLE_DEVICES=0, or {HINT}")
    name = recipe.train.optimizer
    if not count and (name.startswith("paged_") or name.endswith("_8bit")):
        message = f"without a GPU unsloth would silently use another optimizer than {name}"
        yield sftrun.Problem(message, path=("train", "optimizer"), hint=f"use adamw, or {HINT}")


def of_model(recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
    """Yields limits that the model's config.json shows."""
    file = sftrun.data.load_tokenizer(recipe.model).folder / "config.json"
    if not file.is_file():
        return
    kind = json.loads(file.read_text("utf-8")).get("model_type")
    known = _architectures()
    if known and kind not in known:
        message = (
            f"unsloth does not know the architecture {kind!r} of {recipe.model.name} (transformers has no such model)"
        )
        yield sftrun.Problem(message, path=("model", "name"), hint=HINT)


def missing_unsloth(recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
    """Yields a problem with how to install unsloth, if it is not installed."""
    wanted = ("unsloth", "unsloth_zoo", *(["bitsandbytes"] if recipe.tuning.mode == "qlora" else []))
    absent = [name for name in wanted if find_spec(name) is None]
    if absent:
        message = f"the backend unsloth needs {', '.join(absent)}: not installed"
        hint = "in its own environment: pip install 'sftrun-unsloth[unsloth]'; its README has the details"
        yield sftrun.Problem(message, path=("backend",), hint=hint)


def trained_with(run: sftrun.RunDir, default: str = "unsloth") -> str:
    """Returns the name of the backend that has trained a run."""
    return str(run.facts("train").get("backend", {}).get("used", default))


def check_same(run: sftrun.RunDir, now: str) -> None:
    """Raises UserError if another backend has trained a run so far: its checkpoints do not fit this one."""
    before = trained_with(run, default=now)
    if before != now and any(event["event"] == "step" for event in run.events()):
        message = f"{run.path} was trained with {before} so far, and here {now} would continue it"
        raise sftrun.UserError(message, hint=f"resume it where {before} trained it, or start a new run")


@cache
def _architectures() -> frozenset[str]:
    """Returns the model types that the installed transformers has a causal language model for; empty if unknown.

    The table is read as text: unsloth has to be imported before transformers is.
    """
    package = find_spec("transformers")
    if package is None or package.origin is None:
        return frozenset()
    table = Path(package.origin).parent / "models" / "auto" / "modeling_auto.py"
    for node in ast.parse(table.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES":
            pairs = (each for each in ast.walk(node.value) if isinstance(each, ast.Tuple) and each.elts)
            return frozenset(str(pair.elts[0].value) for pair in pairs if isinstance(pair.elts[0], ast.Constant))
    return frozenset()
