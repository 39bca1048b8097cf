"""The base model of a recipe: where it lies, and that an adapter meets the one that it was trained on."""

import contextlib
import hashlib
import tempfile
from pathlib import Path
from typing import Any

import sftrun
import sftrun.data
from sftrun import tiny


def location(recipe: sftrun.Recipe) -> str:
    """The folder or Hub id to load the base model from; the embedded model is made here, once a seed.

    Raises UserError where it is an adapter.
    """
    name = recipe.model.name
    if name == tiny.NAME:
        return _embedded(recipe)
    if (Path(name) / "adapter_config.json").is_file():
        message = f"{name} holds an adapter, not a whole model"
        hint = "train it with the exporter merged, and name its export/merged"
        raise sftrun.UserError(sftrun.Problem(message, path=("model", "name"), hint=hint))
    return name


def _embedded(recipe: sftrun.Recipe) -> str:
    folder = sftrun.files.cache_folder() / "models" / f"tiny-{tiny.fingerprint()[:16]}-seed{recipe.seed}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
        tiny.save(making, recipe.seed)
        with contextlib.suppress(OSError):  # another process was first
            making.rename(folder)
    return str(folder)


def commit(recipe: sftrun.Recipe) -> str:
    """The commit on the Hub whose tokenizer prepared the data; for a folder it means nothing."""
    return sftrun.data.load_tokenizer(recipe.model).folder.name


def weights_hash(location: str) -> str | None:
    """A hash over the weight files of a local model folder; None for a model of the Hub."""
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


def facts(recipe: sftrun.Recipe, quantisation: dict[str, Any] | None) -> dict[str, Any]:
    """What `model/base.json` says of the base of an adapter: its name, the hash of its weights, how they were held."""
    named = {"name": recipe.model.name, "revision": recipe.model.revision}
    return {**named, "weights": weights_hash(location(recipe)), "quantisation": quantisation}


def trained_on(run: sftrun.RunDir) -> dict[str, Any]:
    """The facts of the base of a run's adapter."""
    return dict(run.read_json("model/base.json"))


def check(recipe: sftrun.Recipe, run: sftrun.RunDir) -> None:
    """Raises UserError when a run's adapter was trained on other base weights than those it meets now."""
    then = trained_on(run)["weights"]
    if weights_hash(location(recipe)) != then:
        message = f"the adapter {run.model} does not match its base {recipe.model.name}: those weights have changed"
        raise sftrun.UserError(message, hint=f"train it again, or put back the base with hash {then}")


def hold(recipe: sftrun.Recipe, run: sftrun.RunDir, going_on: bool) -> None:
    """Notes in state.json which base an adapter is trained on.

    Raises UserError where training is `going_on` from a checkpoint, and the base is another one than it began with.
    """
    if recipe.tuning.mode == "full":  # a checkpoint has all weights
        return
    weights = weights_hash(location(recipe))
    now = {"weights": weights} if weights else {"commit": commit(recipe)}
    then = run.facts("train").get("base", now)
    if going_on and then != now:
        message = f"the weights of {recipe.model.name} are not those that the run has trained on so far"
        hint = "put them back, or start a new run, without --resume"
        if "commit" in then:
            hint = f"the Hub has others now: start a new run, with model.revision: {then['commit']} for those before"
        raise sftrun.UserError(sftrun.Problem(message, path=("model", "name"), hint=hint))
    run.add_facts("train", base=now)
