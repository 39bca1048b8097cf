"""The whole flow: a recipe to a trained, evaluated, exported and reported model."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from sftrun.errors import UserError
from sftrun.events import Event, Warned
from sftrun.hookspecs import KINDS
from sftrun.kinds import Emit
from sftrun.launch import follower, heartbeat, topology
from sftrun.launch.signals import SIGNALS
from sftrun.launch.topology import Node
from sftrun.recipe.model import Recipe
from sftrun.recipe.overrides import environment_overrides
from sftrun.recipe.validate import Loaded, PathLike, load_with_places
from sftrun.registry import current
from sftrun.runs import directory, lockfile, manifest, preflight, session
from sftrun.runs import resume as resuming
from sftrun.runs.directory import RunDir
from sftrun.runs.recorder import Recorder
from sftrun.runs.stage import Stage, StageWork

STAGES = (
    Stage(
        "prepare",
        "sftrun.stages.prepare:prepare",
        after="sftrun.stages.prepare:check_components",
        writes=("prepared",),
    ),
    Stage("batch size", "sftrun.stages.batch_size:choose", when=lambda recipe: recipe.train.batch_size == "auto"),
    Stage("train", "sftrun.stages.train:train", writes=("model",)),
    Stage(
        "evaluate",
        "sftrun.stages.evaluate:evaluate",
        when=lambda recipe: bool(recipe.evaluators),
        redo_for="evaluators",
        writes=("eval",),
    ),
    Stage(
        "export",
        "sftrun.stages.export:export",
        when=lambda recipe: bool(recipe.exporters),
        redo_for="exporters",
        writes=("export",),
    ),
    Stage("report", "sftrun.stages.report:report", writes=("report.html", "README.md", "model/README.md")),
)
TRAIN = "sftrun.stages.train:train_in_worker"  # the function that each rank of a training calls


def _silent(event: Event) -> None:
    """Ignores an event."""


def run(
    recipe: PathLike | Recipe,
    overrides: Sequence[str] = (),
    out: PathLike | None = None,
    watch: Emit = _silent,
    *,
    resume: bool = False,
    node: Node | None = None,
    stop_when: Callable[[Event], bool] | None = None,
) -> RunDir:
    """Runs a recipe (a file, or a Recipe) through every stage and returns its run directory; `watch` gets each event.

    With `resume` it continues the recipe's run that was stopped, if there is one. `node` is this machine among several;
    every node but the first only trains. `stop_when` ends the run after an event, as a signal would. Raises UserError
    for everything that the user can fix, with file and line, and Interrupted after a signal.
    """
    loaded = _load(recipe, overrides)
    with session.with_places(loaded.document):
        _check_topology(loaded.recipe, node, named=out is not None)
    if node and node.rank and out:
        return follower.join(loaded, Path(out), node, watch, TRAIN, _up_to_training())
    if resume and (found := resuming.find_run(Path(loaded.name), Path(out) if out else None)):
        settled = resuming.keep_choices(loaded.recipe, found)
        return _resume(found, msgspec.structs.replace(loaded, recipe=settled), watch, node, same_rows=True)
    with (
        new_run(loaded, out, watch, again=resume, stop_when=stop_when) as work,
        heartbeat.heartbeat(work.run, loaded.recipe.launch.nodes),
        session.trackers(loaded.recipe, work.emit, resumed=False),
    ):
        _pass_stages(StageWork(work.run, work.emit, node))
    return work.run


def _load(recipe: PathLike | Recipe, overrides: Sequence[str]) -> Loaded:
    loaded = load_with_places(recipe, overrides)
    return msgspec.structs.replace(loaded, recipe=manifest.follow_links(loaded.recipe))


def resume(run: PathLike, overrides: Sequence[str] = (), watch: Emit = _silent, node: Node | None = None) -> RunDir:
    """Continues a run directory through the stages that are not done; raises as `run` does."""
    folder = directory.open_run(run)
    loaded = load_with_places(folder.path / "resolved.yaml", overrides)
    with session.with_places(loaded.document):
        _check_topology(loaded.recipe, node, named=True)
    if node and node.rank:
        return follower.join(loaded, folder.path, node, watch, TRAIN, _up_to_training())
    return _resume(folder, loaded, watch, node, same_rows=False)


def _resume(folder: RunDir, loaded: Loaded, watch: Emit, node: Node | None, same_rows: bool) -> RunDir:
    """Continues a run; with `same_rows`, rows that have changed are an error, else the run goes on with its own."""
    recipe = loaded.recipe
    with (
        session.with_places(loaded.document),
        SIGNALS.handling(),
        session.locked(folder, STAGES),
        heartbeat.heartbeat(folder, recipe.launch.nodes),
    ):
        recorder = Recorder(folder, watch)
        changes = resuming.reconcile(recipe, folder, topology.world_size(recipe), STAGES)
        folder.check()
        folder.mend()
        folder.write_recipe(recipe)
        packages = lockfile.facts(recipe, current(), [])["packages"]
        warnings = [*changes, *resuming.compare_versions(folder, packages), *preflight.check_machine(recipe)]
        for warning in [*warnings, *resuming.check_data(recipe, folder, same_rows)]:
            recorder(Warned(message=str(warning)))
        preflight.check_tokenizer(recipe, folder)
        with session.trackers(recipe, recorder, resumed=True):
            _pass_stages(StageWork(folder, recorder, node))
    return folder


def _pass_stages(work: StageWork) -> None:
    """Runs every stage that is not done; a stage sees only what earlier stages wrote."""
    for stage in STAGES:
        if stage.when(work.recipe):
            session.run_stage_once(stage, work)
            SIGNALS.raise_if_interrupted()
    directory.point_latest(work.run, work.emit)


def prepare(
    recipe: PathLike | Recipe, overrides: Sequence[str] = (), out: PathLike | None = None, watch: Emit = _silent
) -> RunDir:
    """Runs the first stage alone: rows to tokens and masks; raises UserError as `run` does."""
    with new_run(_load(recipe, overrides), out, watch, preflight.DATA_KINDS) as work:
        session.run_stage(dataclasses.replace(STAGES[0], after=None), work)
    return work.run


def evaluate(run: PathLike, watch: Emit = _silent) -> RunDir:
    """Scores the base and the tuned model of a run again, and writes a new report; raises UserError without a model."""
    folder = directory.open_run(run)
    recipe = folder.recipe()
    if not recipe.evaluators:
        raise UserError(f"the recipe of {run} names no evaluators", hint="add some, and run it again")
    preflight.check_machine(recipe, ("backend", "evaluator"))
    preflight.check_tokenizer(recipe, folder)
    with SIGNALS.handling(), session.locked(folder, STAGES):
        folder.check(("prepared", "model", "export/facts.json", "events.jsonl"))
        work = StageWork(folder, Recorder(folder, watch))
        for stage in STAGES:
            if stage.name in ("evaluate", "report"):
                session.run_stage(stage, work)
    return folder


@contextlib.contextmanager
def new_run(
    loaded: Loaded,
    out: PathLike | None,
    watch: Emit,
    kinds: Sequence[str] = KINDS,
    *,
    again: bool = False,
    stop_when: Callable[[Event], bool] | None = None,
) -> Iterator[StageWork]:
    """A new run directory, locked and begun; problems meanwhile get their place in the recipe.

    With `again`, a folder whose run was killed before it began is taken over.
    """
    with session.with_places(loaded.document):
        warnings = [*loaded.warnings, *preflight.check_machine(loaded.recipe, kinds)]
        folder = directory.create(Path(loaded.name), Path(out) if out else None, again=again)
        with SIGNALS.handling(), session.locked(folder, STAGES):
            directory.vacate(folder, again)  # another process may have written into the folder meanwhile
            folder.write_recipe(loaded.recipe)
            folder.write("recipe.yaml", loaded.text)
            lock = lockfile.facts(loaded.recipe, current(), [*loaded.overrides, *environment_overrides(os.environ)])
            folder.write_json(directory.BEGUN, {**lock, "recipe_file": directory.name_recipe(Path(loaded.name))})
            recorder = Recorder(folder, watch, stop_when)
            for warning in warnings:
                recorder(Warned(message=str(warning)))
            yield StageWork(folder, recorder)


def _up_to_training() -> list[str]:
    """Returns the names of the stages that other nodes wait for."""
    names = [stage.name for stage in STAGES]
    return names[: names.index("train") + 1]


def _check_topology(recipe: Recipe, node: Node | None, named: bool) -> None:
    """Raises UserError if the processes that the recipe asks for cannot train on this machine."""
    topology.check_topology(recipe, node, named, current().create("backend", recipe.backend))
