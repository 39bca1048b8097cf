"""Verifies a run directory: every file against the record of the run, and its sources against the manifest."""

from collections.abc import Iterator
from typing import Any

import msgspec

from sftrun.data.pipeline import locate_file
from sftrun.errors import Problem, UserError
from sftrun.flow import STAGES
from sftrun.recipe.validate import PathLike
from sftrun.registry import current
from sftrun.runs import directory, manifest, record
from sftrun.runs.directory import RunDir


class Verified(msgspec.Struct, frozen=True):
    """The result: damaged files, facts worth knowing, the number of verified files, and the manifest."""

    problems: list[Problem]
    notes: list[str]
    files: int
    made_of: dict[str, Any]


def verify(path: PathLike) -> Verified:
    """Hashes every recorded file of a run; raises UserError if the folder is no run, or its record is damaged."""
    run = directory.open_run(path)
    state = run.read_json(directory.STATE)
    made_of = manifest.read(run)
    problems = [
        *_check_state(run),
        *record.find_damage(run.path, state, thorough=True),
        *record.find_damaged_checkpoints(run.checkpoints),
        *_check_recipe(run, made_of),
        *_check_events(run),
    ]
    return Verified(problems, list(_find_notes(run, state, made_of)), len(record.recorded(state)), made_of)


def _check_state(run: RunDir) -> Iterator[Problem]:
    if not (run.path / directory.STATE).is_file():
        message = f"{run.path / directory.STATE}, the record of the run, is missing: no file can be verified"
        yield Problem(message, hint=record.advise(run.path, directory.STATE))


def _check_recipe(run: RunDir, made_of: dict[str, Any]) -> Iterator[Problem]:
    wanted, file = made_of.get("recipe", {}).get("recipe.yaml"), run.path / "recipe.yaml"
    if wanted and (not file.is_file() or manifest.hash_text(file.read_text("utf-8", "replace")) != wanted):
        yield Problem(f"recipe.yaml of the run {run.path} has changed since the run wrote it", hint="put it back")


def _check_events(run: RunDir) -> Iterator[Problem]:
    try:
        run.events()
    except UserError as error:
        yield from error.problems


def _find_notes(run: RunDir, state: dict[str, Any], made_of: dict[str, Any]) -> Iterator[str]:
    recipe = run.recipe()
    for stage in STAGES:
        if stage.when(recipe) and not run.done(stage.name):
            yield f"the stage {stage.name} is not done, so its files are not recorded"
    for name in record.find_unrecorded(run.path, state):
        yield f"{name} was not written by the run"
    try:
        for name in _find_changed_data(run, made_of):
            yield f"the data file {name} has changed, or is gone, since the run read it"
    except UserError as error:  # the plugin of the source is not installed here, …
        yield f"the data files were not compared: {error.problems[0].message}"
    base = made_of.get("base") or {}
    if base.get("files"):
        for name in manifest.find_changed_files(base, manifest.describe_base(recipe, run)):
            yield f"the file {name} of the base model has changed, or is gone, since the run began"


def _find_changed_data(run: RunDir, made_of: dict[str, Any]) -> Iterator[str]:
    source = current().create("source", run.recipe().source)
    for each in made_of.get("data", []):
        if "sha256" not in each:
            continue
        file = locate_file(source, each["name"])
        if file is None or manifest.describe_file(file)["sha256"] != each["sha256"]:
            yield each["name"]
