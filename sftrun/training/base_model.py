"""Locates the base model of a recipe, and checks that an adapter meets the base that it was trained on."""

import hashlib
import json
from pathlib import Path
from typing import Any

import sftrun
import sftrun.data
from sftrun import tiny


def location(recipe: sftrun.Recipe) -> str:
    """Returns the folder or Hub id of the base model; creates the embedded model once for each seed.

    Raises UserError if the folder holds an adapter.
    """
    name = recipe.model.name
    if name == tiny.NAME:
        return _embedded(recipe)
    if (Path(name) / "adapter_config.json").is_file():
        message = f"{name} holds an adapter, not a whole model"
        hint = "train it with the exporter merged, and name its export/merged"
        raise sftrun.UserError(sftrun.Problem(message, path=("model", "name"), hint=hint))
    return name


def read_config(recipe: sftrun.Recipe) -> dict[str, Any]:
    """Returns the content of the base's config.json; empty if it has none."""
    if recipe.model.name == tiny.NAME:
        return tiny.ARCHITECTURE
    file = sftrun.data.load_tokenizer(recipe.model).folder / "config.json"
    return dict(json.loads(file.read_text("utf-8"))) if file.is_file() else {}


def _embedded(recipe: sftrun.Recipe) -> str:
    folder = sftrun.files.cache_folder() / "models" / f"tiny-{tiny.fingerprint()[:16]}-seed{recipe.seed}"
    if not tiny.is_intact(folder):
        try:
            with sftrun.files.atomic_folder(folder) as making:
                tiny.save(making, recipe.seed)
                tiny.seal(making)
        except OSError:
            if not tiny.is_intact(folder):  # else another process was faster
                raise
    return str(folder)


def commit(recipe: sftrun.Recipe) -> str:
    """Returns the Hub commit of the tokenizer that prepared the data; meaningless for a local folder."""
    return sftrun.data.load_tokenizer(recipe.model).folder.name


def weights_dtype(recipe: sftrun.Recipe) -> str:
    """Returns torch's name of the dtype that the base is stored in, by its config.json: float32, bfloat16, float16."""
    config = read_config(recipe)
    text = config.get("text_config") or {}
    named = (each.get(key) for each in (config, text) for key in ("dtype", "torch_dtype"))
    dtype = str(next(filter(None, named), "float32")).removeprefix("torch.")
    return dtype if dtype in ("bfloat16", "float16") else "float32"


def weights_hash(location: str) -> str | None:
    """Returns a hash of the weight files of a local folder; None for a model of the Hub."""
    folder = Path(location)
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin")):
        digest.update(file.name.encode())
        with file.open("rb") as weights:
            while block := weights.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def base_facts(recipe: sftrun.Recipe, quantisation: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the content of `model/base.json`: the base's name, the hash of its weights, their quantisation."""
    named = {"name": recipe.model.name, "revision": recipe.model.revision}
    return {**named, "weights": weights_hash(location(recipe)), "quantisation": quantisation}


def read_base_facts(run: sftrun.RunDir) -> dict[str, Any]:
    """Reads the facts of the base that a run's adapter was trained on."""
    return dict(run.read_json("model/base.json"))


def check_adapter_base(recipe: sftrun.Recipe, run: sftrun.RunDir) -> None:
    """Raises UserError if the base weights have changed since a run's adapter was trained."""
    trained_on = read_base_facts(run)["weights"]
    if weights_hash(location(recipe)) != trained_on:
        message = f"the adapter {run.model} does not match its base {recipe.model.name}: those weights have changed"
        raise sftrun.UserError(message, hint=f"train it again, or restore the base with hash {trained_on}")


def pin_base(recipe: sftrun.Recipe, run: sftrun.RunDir, resuming: bool) -> None:
    """Records the base of an adapter in state.json.

    Raises UserError if training is `resuming` from a checkpoint and the base has changed.
    """
    if recipe.tuning.mode == "full":  # a checkpoint has all weights
        return
    weights = weights_hash(location(recipe))
    now = {"weights": weights} if weights else {"commit": commit(recipe)}
    pinned = run.facts("train").get("base", now)
    if resuming and pinned != now:
        message = f"the weights of {recipe.model.name} have changed since the run began"
        hint = "restore them, or start a new run, without --resume"
        if "commit" in pinned:
            hint = (
                f"the Hub has other weights now: start a new run, with model.revision: {pinned['commit']} for the old"
            )
        raise sftrun.UserError(sftrun.Problem(message, path=("model", "name"), hint=hint))
    run.add_facts("train", base=now)
