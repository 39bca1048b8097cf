"""Pins the base model of a run: the Hub is asked for its commit once, and every later step loads that commit."""

from pathlib import Path
from typing import Any

import msgspec

from sftrun import files, hub, tiny
from sftrun.data.tokens.tokenizer import NAME, find_folder
from sftrun.options import is_path
from sftrun.recipe.model import ModelOptions, Recipe
from sftrun.runs.directory import BEGUN, RunDir


def pin_commit(recipe: Recipe, run: RunDir) -> Recipe:
    """Returns the recipe with the commit of its model as revision, and writes it to resolved.yaml and lock.json.

    Raises UserError if the model is not available, or if its weights are pickled.
    """
    asked, commit = recipe.model.revision, find_commit(recipe.model)
    if commit:
        model = msgspec.structs.replace(recipe.model, revision=commit)
        recipe = msgspec.structs.replace(recipe, model=model)
    earlier = run.read_json(BEGUN).get("model", {})
    if asked and earlier.get("commit") == asked:  # a resumed run, whose recipe has the commit already
        asked = earlier["revision"]
    facts = {"name": recipe.model.name, "revision": asked, "commit": commit, **_code(recipe.model)}
    run.merge_json(BEGUN, {"model": facts})
    if recipe != run.recipe():
        run.write_recipe(recipe)
    return recipe


def find_commit(model: ModelOptions) -> str | None:
    """Returns the commit of a model of the Hub; None for a folder. Raises UserError if its weights are pickled."""
    if model.name == tiny.NAME:
        return None
    if not is_path(model.name):
        return hub.find_commit(model.name, model.revision, NAME)
    hub.check_weights(model.name, [file.name for file in find_folder(model).iterdir()], NAME)
    return None


def _code(model: ModelOptions) -> dict[str, Any]:
    """Returns the hashes of the Python files that come with a model and may run; empty if none may."""
    if not model.trust_remote_code:
        return {}
    folder: Path = find_folder(model)
    code = {str(file.relative_to(folder)): files.file_digest(file) for file in sorted(folder.rglob("*.py"))}
    return {"trust_remote_code": True, "code": code}
