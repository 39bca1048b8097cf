"""What unsloth cannot do, with reasons; seen without importing it, so that a fallback is not run under its patches."""

import ast
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path

import sftrun

HINT = "use the backend hf, or set backend.with.fallback: hf"


def contradictions(recipe: sftrun.Recipe, four_bit: bool, asked: bool | None) -> Iterator[sftrun.Problem]:
    """What no backend could do."""
    mode = str(recipe.tuning.mode)
    path = ("backend", "with", "load_in_4bit")
    if four_bit and mode == "full":
        hint = "use tuning.mode lora, or leave it out"
        yield sftrun.Problem("load_in_4bit keeps weights that mode full has to change", path=path, hint=hint)
    if mode == "qlora" and asked is False:
        hint = "use tuning.mode lora, or leave it out"
        yield sftrun.Problem("load_in_4bit: false contradicts tuning.mode qlora", path=path, hint=hint)
    if four_bit and mode == "lora" and "merged" in map(name_of, recipe.exporters):
        message = "the exporter merged would merge into a base of other weights than the 4-bit one that was trained on"
        yield sftrun.Problem(message, path=("exporters",), hint="use the exporter unsloth-merged, which compares the two")


def of_recipe(recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
    """Limits seen from the recipe alone."""
    if recipe.packing.strategy != "none":
        message = "the backend unsloth pads rows: it would not keep the rows of a pack apart"
        yield sftrun.Problem(message, path=("packing", "strategy"), hint=f"use packing.strategy none, or {HINT}")
    modules = recipe.tuning.lora.target_modules
    if recipe.tuning.mode != "full" and isinstance(modules, list):
        for name in sorted({"lm_head", "embed_tokens"} & set(modules)):
            message = f"unsloth trains {name} in full, not with an adapter"
            yield sftrun.Problem(message, path=("tuning", "lora", "target_modules"), hint=f"take it out, or {HINT}")


def of_machine() -> Iterator[sftrun.Problem]:
    """Limits of this machine."""
    gpus = _gpus()
    if gpus > 1:
        message = f"the backend unsloth trains on one GPU, in one process; {gpus} are visible here"
        yield sftrun.Problem(message, path=("backend",), hint=f"export CUDA_VISIBLE_DEVICES=0, or {HINT}")


def of_model(recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
    """Limits seen from the model's config.json."""
    file = sftrun.load_tokenizer(recipe.model).folder / "config.json"
    if not file.is_file():
        return
    kind = json.loads(file.read_text("utf-8")).get("model_type")
    known = _architectures()
    if known and kind not in known:
        message = f"unsloth does not know the architecture {kind!r} of {recipe.model.name} (transformers has no such model)"
        yield sftrun.Problem(message, path=("model", "name"), hint=HINT)


def all_of(recipe: sftrun.Recipe) -> list[sftrun.Problem]:
    """All limits that can be seen before unsloth is imported."""
    return [*of_recipe(recipe), *of_machine(), *of_model(recipe)]


def not_installed(four_bit: bool) -> Iterator[sftrun.Problem]:
    """Says how unsloth is installed, where it is not."""
    wanted = ("unsloth", "unsloth_zoo", *(["bitsandbytes"] if four_bit else []))
    absent = [name for name in wanted if find_spec(name) is None]
    if absent:
        message = f"the backend unsloth needs {', '.join(absent)}: not installed"
        hint = "in an environment of its own: pip install 'sftrun-unsloth[unsloth]'; its README has the details"
        yield sftrun.Problem(message, path=("backend",), hint=hint)


def used(run: Path) -> str:
    """The backend that has trained a run."""
    return str(sftrun.RunDir(run).read_json("lock.json").get("backend", {}).get("used", "unsloth"))


def name_of(use: "str | sftrun.Use") -> str:
    """The name of a component that a recipe names."""
    return use if isinstance(use, str) else use.use


def _gpus() -> int:
    """GPUs that a process would see; asked of the driver, because importing torch here would take seconds."""
    if not shutil.which("nvidia-smi"):
        return 0
    said = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False).stdout
    there = sum(line.startswith("GPU ") for line in said.splitlines())
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return there
    # CUDA reads the list up to the first name that it does not know
    return min(there, len(list(takewhile(lambda name: name.strip() not in ("", "-1"), chosen.split(",")))))


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
