"""Which run a recipe goes on with, and whether it is still the same recipe."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from sftrun import files
from sftrun.errors import Problem, UserError
from sftrun.recipe.model import Recipe
from sftrun.runs import directory
from sftrun.runs.directory import RunDir
from sftrun.runs.stage import Stage

# What may be another now: it decides nothing about the trained weights.
FREE = {
    "description",
    "launch.restarts",
    *(f"train.save_{name}" for name in ("strategy", "steps", "total_limit")),
    *(f"train.{name}" for name in ("logging_steps", "eval_batch_size", "dataloader_workers", "dataloader_prefetch")),
    "train.on_oom",
    "train.activation_offload",
    "trackers",
}
# The same sums, added up in another order: what helps where memory ran out.
COUNTS = {"launch.processes", "launch.nodes"}
KERNELS = {f"train.{name}" for name in ("attention", "cross_entropy", "compile", "tf32")}
ROUNDING = {"train.batch_size", "train.grad_accum", "train.gradient_checkpointing", *KERNELS, *COUNTS}
SAME = {"train.effective_batch_size"}  # where the rows of a step stay as many
SPLIT = (("batch_size", "grad_accum"), ("eval_batch_size",))  # what a run may have changed on its own


def find(recipe_file: Path, out: Path | None) -> RunDir | None:
    """The run to go on with: the one in `out`, else the recipe's newest; None where none has begun."""
    if out is None:
        return directory.latest(recipe_file)
    if (out / directory.BEGUN).is_file():
        return directory.open_run(out)
    return None


def reconcile(recipe: Recipe, run: RunDir, processes: int, stages: Sequence[Stage]) -> list[str]:
    """Makes a run ready to go on with a recipe, and returns what there is to say about it.

    Raises UserError, with every difference, where the recipe would train something else than the run has so far.
    """
    before, later = run.recipe(), {stage.redo_for: stage.name for stage in stages if stage.redo_for}
    changed = dict(_differences(before, recipe))
    changed.pop("extends", None)
    sizes = _trained_by(run, processes), processes
    changed |= {} if sizes[0] == sizes[1] or COUNTS & changed.keys() else {"launch.processes": sizes}
    if before.train.step_rows(sizes[0]) != recipe.train.step_rows(sizes[1]):
        wrong = {key: each for key, each in changed.items() if key not in FREE | later.keys()}
    else:
        wrong = {key: each for key, each in changed.items() if key not in FREE | ROUNDING | SAME | later.keys()}
    if wrong:
        raise UserError(_problem(key, *values, run) for key, values in wrong.items())
    if not (run.prepared / "proof.json").is_file():  # someone has made room; training compares what comes of it
        run.forget("prepare")
    again = [name for key, name in later.items() if key in changed]
    if again:
        run.forget(*again)
    *earlier, last = [stage.name for stage in stages if stage.when(recipe)]
    if not all(run.done(name) for name in earlier):
        run.forget(last)
    return list(_warnings(changed.keys() & ROUNDING))


def _warnings(rounded: set[str]) -> Iterator[str]:
    if rounded:
        draws = ", and dropout draws other numbers" if rounded & COUNTS else ""
        yield f"{', '.join(sorted(rounded))} changed: the weights will differ by rounding from now on{draws}"


def settled(recipe: Recipe, run: RunDir) -> Recipe:
    """The recipe with the batch that the run has come to, where it still asks for what the run began with."""
    asked = run.facts("train").get("batch", {}).get("asked", {})
    now = run.recipe().train
    sets: dict[str, Any] = {}
    for names in SPLIT:
        if all(name in asked and getattr(recipe.train, name) == asked[name] for name in names):
            sets |= {name: getattr(now, name) for name in names}
    return msgspec.structs.replace(recipe, train=msgspec.structs.replace(recipe.train, **sets))


def versions(run: RunDir, now: dict[str, Any]) -> Iterator[str]:
    """Packages that are not those that the run began with."""
    then = run.read_json(directory.BEGUN).get("packages", {})
    for name in sorted(then.keys() | now.keys()):
        if then.get(name) != now.get(name):
            yield f"the run began with {name} {then.get(name, 'absent')}, and now it is {now.get(name, 'absent')}"


def advice(run: RunDir, stages: Sequence[Stage]) -> str:
    """What there is to go on from, and the command that does."""
    if not (run.path / directory.BEGUN).is_file():
        return "nothing was done yet: start it again, with --resume"
    again = f"sftrun resume {files.shell_path(run.path)}"
    if run.done("train"):
        left = [stage.name for stage in stages if stage.when(run.recipe()) and not run.done(stage.name)]
        return f"the model is trained; to go on with {', '.join(left)}: {again}"
    steps = [event["step"] for event in run.events() if event["event"] == "checkpoint" and "path" in event]
    kept = f"{files.shell_path(run.checkpoints)}/checkpoint-{steps[-1]} is whole; " if steps else ""
    return f"{kept}to go on: {again}"


def _trained_by(run: RunDir, now: int) -> int:
    """How many processes have trained so far; `auto` may be another number now, on another machine."""
    found = run.facts("train").get("launch")
    return int(found["processes"] * found["nodes"]) if found else now


def _differences(before: Recipe, now: Recipe) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Dotted keys whose values are others, and both values."""
    sides = [dict(_leaves(msgspec.to_builtins(each), "")) for each in (before, now)]
    for key in sides[0] | sides[1]:
        values = (sides[0].get(key), sides[1].get(key))
        if values[0] != values[1]:
            yield key, values


def _leaves(data: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Values by dotted keys; components are one value each, so that none is told by halves."""
    for key, value in data.items():
        if isinstance(value, dict) and value and "use" not in value:
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield path + key, value


def _problem(key: str, before: Any, now: Any, run: RunDir) -> Problem:
    told = (msgspec.json.encode(value).decode() for value in (before, now))
    message = "{0} is {2}, but the run in {3} has trained with {1}".format(key, *told, run.path.name)
    hint = "put it back, or start a new run, without --resume"
    return Problem(message, path=tuple(key.split(".")), hint=hint)
