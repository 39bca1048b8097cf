"""What unsloth cannot do, with reasons; seen without importing it, so that a fallback is not run under its patches."""

import ast
import json
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import sftrun
import sftrun.data
from sftrun.training import limits

HINT = "use the backend hf, or set backend.with.fallback: hf"
SWITCHES = ("attention", "cross_entropy", "compile", "activation_offload", "tf32")


def mistakes(recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
    """What no backend could do."""
    yield from limits.check_recipe(recipe)
    if recipe.tuning.mode != "full" and recipe.tuning.lora.target_modules == []:
        path = ("tuning", "lora", "target_modules")
        yield sftrun.Problem("target_modules must name at least one module", path=path)


def of_recipe(recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
    """Limits seen from the recipe alone."""
    for name in ("processes", "nodes"):
        count = getattr(recipe.launch, name)
        if count not in (1, "auto"):
            message = f"the backend unsloth trains on one GPU, in one process; launch.{name} is {count}"
            yield sftrun.Problem(message, path=("launch", name), hint=f"leave it out, or {HINT}")
    if recipe.packing.strategy != "none":
        message = "the backend unsloth pads rows: it would not keep the rows of a pack apart"
        yield sftrun.Problem(message, path=("packing", "strategy"), hint=f"use packing.strategy none, or {HINT}")
    usual = type(recipe.train)()
    for key in SWITCHES:
        if getattr(recipe.train, key) != getattr(usual, key):
            message = f"unsloth has kernels of its own, and chooses itself what train.{key} would"
            yield sftrun.Problem(message, path=("train", key), hint=f"leave it out, or {HINT}")
    if recipe.tuning.mode != "full":
        for key, message in _of_adapter(recipe.tuning.lora):
            yield sftrun.Problem(message, path=("tuning", "lora", key), hint=f"change it, or {HINT}")


def _of_adapter(lora: Any) -> Iterator[tuple[str, str]]:
    modules = lora.target_modules
    if modules == "auto":
        yield "target_modules", "unsloth does not leave the choice of modules to peft"
    for name in sorted({"lm_head", "embed_tokens"} & set(modules)) if isinstance(modules, list) else ():
        yield "target_modules", f"unsloth trains {name} in full, not with an adapter"
    if lora.modules_to_save:
        yield "modules_to_save", "the backend unsloth trains adapters alone, and no module in full beside them"
    if lora.init not in ("default", "gaussian"):
        yield "init", f"the backend unsloth does not save what init {lora.init} takes out of the base"


def of_machine(recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
    """Limits of this machine."""
    count = sftrun.gpu_count()
    if count > 1:
        message = f"the backend unsloth trains on one GPU, in one process; {count} are visible here"
        yield sftrun.Problem(message, path=("backend",), hint=f"export CUDA_VISIBLE_DEVICES=0, or {HINT}")
    name = recipe.train.optimizer
    if not count and (name.startswith("paged_") or name.endswith("_8bit")):
        message = f"without a GPU unsloth would silently use another optimizer than {name}"
        yield sftrun.Problem(message, path=("train", "optimizer"), hint=f"use adamw, or {HINT}")


def of_model(recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
    """Limits seen from the model's config.json."""
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


def all_of(recipe: sftrun.Recipe) -> list[sftrun.Problem]:
    """All limits that can be seen before unsloth is imported."""
    return [*of_recipe(recipe), *of_machine(recipe), *of_model(recipe)]


def not_installed(recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
    """Says how unsloth is installed, where it is not."""
    wanted = ("unsloth", "unsloth_zoo", *(["bitsandbytes"] if recipe.tuning.mode == "qlora" else []))
    absent = [name for name in wanted if find_spec(name) is None]
    if absent:
        message = f"the backend unsloth needs {', '.join(absent)}: not installed"
        hint = "in an environment of its own: pip install 'sftrun-unsloth[unsloth]'; its README has the details"
        yield sftrun.Problem(message, path=("backend",), hint=hint)


def used(run: Path) -> str:
    """The backend that has trained a run."""
    return str(sftrun.RunDir(run).read_json("lock.json").get("backend", {}).get("used", "unsloth"))


def check_same(run: sftrun.RunDir, now: str | None) -> None:
    """Raises UserError where another backend has trained a run so far: its checkpoints are of other sums."""
    before = run.read_json("lock.json").get("backend", {}).get("used", now)
    if before != now and any(event["event"] == "step" for event in run.events()):
        message = f"{run.path} was trained with {before} so far, and here it would go on with {now}"
        raise sftrun.UserError(message, hint=f"resume it where {before} trained it, or start a new run")


def name_of(use: "str | sftrun.Use") -> str:
    """The name of a component that a recipe names."""
    return use if isinstance(use, str) else use.use


@cache
def _architectures() -> frozenset[str]:
    """Model types that the installed transformers has a causal language model for; empty where that is not known.

    Its table is read as text: unsloth has to be imported before transformers is.
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
