"""The manifest of a run: what its model was made of. It stands in lock.json and in the model card."""

import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec

from sftrun import files, tiny
from sftrun.errors import Problem, UserError
from sftrun.options import is_path
from sftrun.recipe.model import Recipe
from sftrun.runs import directory
from sftrun.runs.directory import RunDir

MANIFEST = "made_of"  # key of lock.json
DATA = "prepared/data.json"  # the files of the rows, with size, hash and rows
WEIGHTS = (".safetensors", ".bin")
DESCRIBES_MODEL = (*WEIGHTS, ".json", ".jinja", ".model")  # suffixes of the files of a model folder that are hashed


def follow_links(recipe: Recipe) -> Recipe:
    """Returns the recipe with the folder that its base is now, if the name is a link: `chat-latest` moves."""
    name = recipe.model.name
    if not is_path(name) or os.path.realpath(name) == name:
        return recipe
    return msgspec.structs.replace(recipe, model=msgspec.structs.replace(recipe.model, name=os.path.realpath(name)))


def write(run: RunDir) -> dict[str, Any]:
    """Writes the manifest, as far as it is known by now, to lock.json; returns it."""
    lock = run.read_json(directory.BEGUN)
    made_of = {
        "recipe": {name: hash_text((run.path / name).read_text("utf-8")) for name in directory.FIRST},
        "overrides": lock.get("overrides", []),
        "base": lock.get(MANIFEST, {}).get("base"),
        "source": run.facts("prepare").get("prepared", {}).get("source"),
        "data": run.read_json(DATA).get("files", []),
        "mask": run.facts("prepare").get("mask"),
        "versions": {key: lock[key] for key in ("sftrun", "python", "packages") if key in lock},
    }
    run.write_json(directory.BEGUN, {**lock, MANIFEST: made_of})
    return made_of


def read(run: RunDir) -> dict[str, Any]:
    """Returns the manifest; empty for a run that has prepared nothing yet."""
    return dict(run.read_json(directory.BEGUN).get(MANIFEST, {}))


def hash_text(text: str) -> str:
    """Returns the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def pin_base(recipe: Recipe, run: RunDir) -> None:
    """Adds the base, by its content, to the manifest; raises UserError if it is no longer the recorded one."""
    _check_run_of_base(recipe)
    lock = run.read_json(directory.BEGUN)
    before, now = lock.get(MANIFEST, {}).get("base"), describe_base(recipe, run)
    if before is None:
        run.write_json(directory.BEGUN, {**lock, MANIFEST: {**lock.get(MANIFEST, {}), "base": now}})
        return
    changed = find_changed_files(before, now)
    if changed:
        weights = any(name.endswith(WEIGHTS) for name in changed)
        what = "the weights" if weights else ", ".join(changed)
        message = f"{what} of {recipe.model.name} have changed since the run began"
        hint = "restore them, or start a new run, without --resume"
        raise UserError(Problem(message, path=("model", "name"), hint=hint))


def _check_run_of_base(recipe: Recipe) -> None:
    """Raises UserError if the base is the model of another run, and no longer as that run wrote it."""
    folder = Path(recipe.model.name)
    for path in list(folder.parents)[:2] if is_path(recipe.model.name) else ():
        if all((path / name).is_file() for name in (directory.RESOLVED, directory.STATE)):
            RunDir(path).check((folder.relative_to(path).as_posix(),))


def describe_base(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Returns the base by its content: a commit, the hashes of a folder's files, or the seed of the embedded one."""
    model = recipe.model
    if model.name == tiny.NAME:
        return {"name": model.name, "seed": recipe.seed, "fingerprint": tiny.fingerprint()}
    if not is_path(model.name):
        return {"name": model.name, **run.facts("prepare").get("model", {})}
    folder = Path(os.path.realpath(model.name))
    found = sorted(file for file in folder.glob("*") if file.suffix in DESCRIBES_MODEL and file.is_file())
    return {"name": str(folder), "files": {file.name: describe_file(file) for file in found}}


def describe_file(file: Path) -> dict[str, Any]:
    """Returns the size and the SHA-256 of a file."""
    return {"size": file.stat().st_size, "sha256": files.file_digest(file)}


def find_changed_files(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Returns the files of a base folder that differ from the recorded ones, weights first."""
    was, is_now = before.get("files", {}), now.get("files", {})
    names = [name for name in was.keys() | is_now.keys() if was.get(name) != is_now.get(name)]
    return sorted(names, key=lambda name: (not name.endswith(WEIGHTS), name))
