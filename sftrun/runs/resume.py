"""Resuming a run: finds it, and compares its recipe with the current one."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from sftrun import files
from sftrun.errors import Problem, UserError
from sftrun.recipe.model import Recipe
from sftrun.registry import current
from sftrun.runs import directory, record
from sftrun.runs.directory import RunDir
from sftrun.runs.stage import Stage

# Keys that may change on resume: they do not affect the weights.
FREE = {
    "description",
    "launch.restarts",
    *(f"train.save_{name}" for name in ("strategy", "steps", "total_limit")),
    *(f"train.{name}" for name in ("logging_steps", "eval_batch_size", "dataloader_workers", "dataloader_prefetch")),
    "train.on_oom",
    "train.activation_offload",
    "trackers",
}
# Keys that may change after running out of memory: the same sums in another order.
COUNTS = {"launch.processes", "launch.nodes"}
KERNELS = {f"train.{name}" for name in ("attention", "attention_revision", "cross_entropy", "compile", "tf32")}
ROUNDING = {"train.batch_size", "train.grad_accum", "train.gradient_checkpointing", *KERNELS, *COUNTS}
SAME = {"train.effective_batch_size"}  # may change if an optimizer step sees as many rows as before
SPLIT = (("batch_size", "grad_accum"), ("eval_batch_size",))  # keys in `train` that a run changes by itself


def find_run(recipe_file: Path, out: Path | None) -> RunDir | None:
    """Returns the run to resume: the one in `out`, else the newest of the recipe; None if there is none."""
    if out is None:
        newest = directory.find_latest(recipe_file)
        return directory.open_run(newest.path) if newest else None
    if (out / directory.BEGUN).is_file():
        return directory.open_run(out)
    return None


def reconcile(recipe: Recipe, run: RunDir, processes: int, stages: Sequence[Stage]) -> list[str]:
    """Marks the stages that a recipe makes necessary again, and returns warnings about changed keys.

    Raises UserError, with every difference, if the recipe would train other weights than the run has so far.
    """
    before = run.recipe()
    later = {stage.redo_for: stage.name for stage in stages if stage.redo_for}  # the stage to redo, by changed key
    changed = dict(_differences(before, recipe))
    changed.pop("extends", None)
    earlier_size = _earlier_world_size(run, processes)
    if earlier_size != processes and not COUNTS & changed.keys():
        changed["launch.processes"] = (earlier_size, processes)
    if before.train.step_rows(earlier_size) != recipe.train.step_rows(processes):
        wrong = {key: each for key, each in changed.items() if key not in FREE | later.keys()}
    else:
        wrong = {key: each for key, each in changed.items() if key not in FREE | ROUNDING | SAME | later.keys()}
    if wrong:
        raise UserError(_problem(key, *values, run) for key, values in wrong.items())
    if not (run.prepared / "proof.json").is_file():  # deleted to free the disk; training compares hashes of the new one
        run.mark_undone("prepare")
    removed = list(_find_removed(run, stages))
    again = [name for key, name in later.items() if key in changed] + [stage.name for stage in removed]
    if again:
        run.mark_undone(*again)
    *earlier, last = [stage.name for stage in stages if stage.when(recipe)]
    if not all(run.done(name) for name in earlier):
        run.mark_undone(last)
    lost = [f"{run.path / stage.writes[0]} is missing: the stage {stage.name} runs again" for stage in removed]
    return [*_warn_of_rounding(changed.keys() & ROUNDING), *lost]


def _find_removed(run: RunDir, stages: Sequence[Stage]) -> Iterator[Stage]:
    """Yields the done stages of which no file is left."""
    for stage in stages:
        files = [name for name in run.facts(stage.name).get("files", {}) if name not in record.LOGS]
        if run.done(stage.name) and files and not any((run.path / name).exists() for name in files):
            yield stage


def _warn_of_rounding(rounded: set[str]) -> Iterator[str]:
    if rounded:
        draws = ", and dropout draws other numbers" if rounded & COUNTS else ""
        yield f"{', '.join(sorted(rounded))} changed: the weights will differ by rounding from now on{draws}"


def check_data(recipe: Recipe, run: RunDir, same_rows: bool) -> Iterator[Problem]:
    """Yields a warning if the rows are no longer those that the run has prepared.

    Raises UserError instead with `same_rows`, or if the rows must be prepared again.
    """
    before = run.facts("prepare").get("prepared")
    if not before:
        return
    try:
        is_same = _fingerprint_data(recipe) == (before["source"]["fingerprint"], before["transform_files"])
    except UserError as error:
        yield Problem(
            f"the data cannot be compared with those of the run: {error.problems[0].message}", severity="warning"
        )
        return
    if is_same:
        return
    message = "the data have changed since the run prepared them"
    if same_rows or not run.done("prepare"):
        hint = (
            f"put them back, or start a new run, without --resume; {_resume_command(run)} keeps the rows as they were"
        )
        raise UserError(Problem(message, path=("source",), hint=hint))
    yield Problem(message, hint="the run goes on with the rows as they were", severity="warning")


def _fingerprint_data(recipe: Recipe) -> tuple[str, list[str]]:
    source = current().create("source", recipe.source)
    transforms = [current().create("transform", use) for use in recipe.transforms]
    return source.fingerprint(), [each.fingerprint() for each in transforms if hasattr(each, "fingerprint")]


def _resume_command(run: RunDir) -> str:
    return f"sftrun resume {files.shell_path(run.path)}"


def keep_choices(recipe: Recipe, run: RunDir) -> Recipe:
    """Returns the recipe with the batch and the commit that the run chose, if it still asks for what the run began
    with.
    """
    return _keep_commit(_keep_batch(recipe, run), run)


def _keep_commit(recipe: Recipe, run: RunDir) -> Recipe:
    pinned, model = run.read_json(directory.BEGUN).get("model", {}), recipe.model
    if pinned.get("commit") and (model.name, model.revision) == (pinned["name"], pinned["revision"]):
        model = msgspec.structs.replace(model, revision=pinned["commit"])
    return msgspec.structs.replace(recipe, model=model)


def _keep_batch(recipe: Recipe, run: RunDir) -> Recipe:
    asked = run.facts("train").get("batch", {}).get("asked", {})
    now = run.recipe().train
    sets: dict[str, Any] = {}
    for names in SPLIT:
        if all(name in asked and getattr(recipe.train, name) == asked[name] for name in names):
            sets |= {name: getattr(now, name) for name in names}
    return msgspec.structs.replace(recipe, train=msgspec.structs.replace(recipe.train, **sets))


def compare_versions(run: RunDir, now: dict[str, Any]) -> Iterator[str]:
    """Yields a warning for each package whose version has changed since the run began."""
    then = run.read_json(directory.BEGUN).get("packages", {})
    for name in sorted(then.keys() | now.keys()):
        if then.get(name) != now.get(name):
            yield f"the run began with {name} {then.get(name, 'absent')}, and now it is {now.get(name, 'absent')}"


def describe_resume(run: RunDir, stages: Sequence[Stage]) -> str:
    """Returns where the run stopped, and the command that resumes it."""
    if not (run.path / directory.BEGUN).is_file():
        return "nothing was done yet: start the run again, with --resume"
    again = _resume_command(run)
    if run.done("train"):
        left = [stage.name for stage in stages if stage.when(run.recipe()) and not run.done(stage.name)]
        return f"the model is trained; to continue with {', '.join(left)}: {again}"
    steps = [event["step"] for event in run.events() if event["event"] == "checkpoint" and "path" in event]
    kept = f"{files.shell_path(run.checkpoints)}/checkpoint-{steps[-1]} is complete; " if steps else ""
    return f"{kept}to resume: {again}"


def _earlier_world_size(run: RunDir, now: int) -> int:
    """Returns the world size that has trained so far; `auto` may give another number on this machine."""
    found = run.facts("train").get("launch")
    return int(found["processes"] * found["nodes"]) if found else now


def _differences(before: Recipe, now: Recipe) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Yields each dotted key whose value differs, with both values."""
    sides = [dict(_leaves(msgspec.to_builtins(each), "")) for each in (before, now)]
    for key in sides[0] | sides[1]:
        values = (sides[0].get(key), sides[1].get(key))
        if values[0] != values[1]:
            yield key, values


def _leaves(data: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yields values by dotted keys; a component is one value, so that a difference shows all of it."""
    for key, value in data.items():
        if isinstance(value, dict) and value and "use" not in value:
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield path + key, value


def _problem(key: str, before: Any, now: Any, run: RunDir) -> Problem:
    values = (msgspec.json.encode(value).decode() for value in (before, now))
    message = "{0} is {2}, but the run in {3} has trained with {1}".format(key, *values, run.path.name)
    hint = "put it back, or start a new run, without --resume"
    return Problem(message, path=tuple(key.split(".")), hint=hint)
