"""The whole flow: a recipe to a trained, evaluated, exported and reported model."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from sftrun import files
from sftrun.data.store import cache_folder
from sftrun.errors import Interrupted, Problem, UserError, missing_packages
from sftrun.hookspecs import KINDS
from sftrun.launch import follower, heartbeat, signals, topology
from sftrun.launch.topology import Node
from sftrun.options import as_use
from sftrun.recipe.document import Document
from sftrun.recipe.model import Recipe, components
from sftrun.recipe.resolved import normal
from sftrun.recipe.validate import Loaded, from_resolved, load_with_places, resolved_yaml
from sftrun.registry import current
from sftrun.runs import directory, lockfile
from sftrun.runs import resume as resuming
from sftrun.runs.directory import RunDir
from sftrun.types import Emit

TRAIN = "sftrun.stages.train:train_here"
DATA_LINE = ("source", "transform", "formatter", "masker")
Asked = tuple[str | Path, Sequence[str], str | Path | None]  # a recipe's file, overrides, and the folder of the run
PACKAGES = ("jinja2", "numpy", "pyarrow", "tokenizers")  # of the data line; what else is needed, components say


def run(  # noqa: PLR0913, PLR0917  (as many as the command has options)
    path: str | Path,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    watch: Emit = lambda event: None,
    resume: bool = False,
    node: Node | None = None,
) -> RunDir:
    """Runs a recipe through every stage and returns its run directory; `watch` is given each event.

    With `resume` it goes on with the recipe's run that was stopped, where there is one. `node` is this machine among
    several; all but the first only train. Raises UserError for all that the user can fix, with file and line, and
    Interrupted after a signal.
    """
    loaded = load_with_places(path, overrides)
    with explained(loaded.document):
        launchable(loaded.recipe, node, out is not None)
    if node and node.rank and out:
        return follower.join(loaded, Path(out), node, watch, TRAIN)
    if resume and (found := resuming.find(Path(path), Path(out) if out else None)):
        settled = resuming.settled(loaded.recipe, found)
        return _go_on(found, msgspec.structs.replace(loaded, recipe=settled), watch, node)
    with (
        _started(loaded, (path, overrides, out), watch, KINDS, resume) as (recipe, folder, emit),
        heartbeat.beating(folder, recipe.launch.nodes),
    ):
        _stages(recipe, folder, emit, node)
    return folder


def go_on(
    path: str | Path, overrides: Sequence[str] = (), watch: Emit = lambda event: None, node: Node | None = None
) -> RunDir:
    """Goes on with a run directory, through the stages that are not done; raises as `run` does."""
    folder = directory.open_run(Path(path))
    loaded = load_with_places(folder.path / "resolved.yaml", overrides)
    with explained(loaded.document):
        launchable(loaded.recipe, node, named=True)
    return (
        follower.join(loaded, folder.path, node, watch, TRAIN)
        if node and node.rank
        else _go_on(folder, loaded, watch, node)
    )


def _go_on(folder: RunDir, loaded: Loaded, watch: Emit, node: Node | None) -> RunDir:
    several = heartbeat.beating(folder, loaded.recipe.launch.nodes)
    with explained(loaded.document), held(folder, watch) as emit, several:
        recipe = normal(loaded.recipe)
        found = resuming.reconcile(recipe, folder, topology.size(recipe))
        folder.mend()
        folder.write("resolved.yaml", resolved_yaml(recipe))
        packages = lockfile.facts(recipe, current(), [])["packages"]
        for warning in [*found, *resuming.versions(folder, packages), *ready(recipe)]:
            emit({"event": "warning", "message": str(warning)})
        _stages(recipe, folder, emit, node)
    return folder


def _stages(recipe: Recipe, folder: RunDir, emit: Emit, node: Node | None) -> None:
    """Every stage that is not done; each of them sees only what those before it wrote."""
    from sftrun.stages.batch_size import size
    from sftrun.stages.evaluate import evaluate
    from sftrun.stages.export import export
    from sftrun.stages.prepare import prepare
    from sftrun.stages.report import report
    from sftrun.stages.train import train

    once(folder, emit, "prepare", lambda: prepare(recipe, folder, current(), emit))
    fit(recipe, folder, emit)
    if recipe.train.batch_size == "auto":
        staged(folder, emit, "size", lambda: size(recipe, folder, emit))
    once(folder, emit, "train", lambda: train(written(folder), folder, emit, node))
    if recipe.evaluators:
        once(folder, emit, "evaluate", lambda: evaluate(folder, emit))
    if recipe.exporters:
        once(folder, emit, "export", lambda: export(folder, emit))
    once(folder, emit, "report", lambda: report(written(folder), folder))
    _point_latest(folder, emit)


def written(folder: RunDir) -> Recipe:
    """The recipe as a run directory has it, with the batch that was chosen."""
    return from_resolved((folder.path / "resolved.yaml").read_text("utf-8"))


def prepare_only(
    path: str | Path, overrides: Sequence[str] = (), out: str | Path | None = None, watch: Emit = lambda event: None
) -> RunDir:
    """The first stage alone; raises UserError as `run` does."""
    with started(path, overrides, out, watch, DATA_LINE) as (recipe, folder, emit):
        from sftrun.stages.prepare import prepare

        staged(folder, emit, "prepare", lambda: prepare(recipe, folder, current(), emit))
    return folder


def evaluate_again(path: str | Path, watch: Emit = lambda event: None) -> RunDir:
    """The evaluators of an existing run directory, and a new report; raises UserError where there is no model."""
    folder = directory.open_run(Path(path))
    recipe = written(folder)
    if not recipe.evaluators:
        raise UserError(f"the recipe of {path} names no evaluators", hint="add some, and run it again")
    ready(recipe, ("backend", "evaluator"))
    from sftrun.stages.evaluate import evaluate
    from sftrun.stages.report import report

    with held(folder, watch) as emit:
        staged(folder, emit, "evaluate", lambda: evaluate(folder, emit))
        staged(folder, emit, "report", lambda: report(recipe, folder))
    return folder


@contextlib.contextmanager
def started(
    path: str | Path,
    overrides: Sequence[str],
    out: str | Path | None,
    watch: Emit,
    kinds: Sequence[str] = KINDS,
) -> Iterator[tuple[Recipe, RunDir, Emit]]:
    """A validated recipe and its new run directory; what fails meanwhile is given its place in the recipe."""
    with _started(load_with_places(path, overrides), (path, overrides, out), watch, kinds) as begun:
        yield begun


@contextlib.contextmanager
def _started(
    loaded: Loaded, asked: Asked, watch: Emit, kinds: Sequence[str], again: bool = False
) -> Iterator[tuple[Recipe, RunDir, Emit]]:
    path, overrides, out = asked
    with explained(loaded.document):
        warnings = [*loaded.warnings, *ready(loaded.recipe, kinds)]
        folder = directory.create(Path(path), Path(out) if out else None, again=again)
        with held(folder, watch) as emit:
            directory.vacate(folder, again)  # what is there by now, another process may have written meanwhile
            begin(loaded, Path(path), overrides, folder)
            for warning in warnings:
                emit({"event": "warning", "message": str(warning)})
            yield loaded.recipe, folder, emit


@contextlib.contextmanager
def held(folder: RunDir, watch: Emit) -> Iterator[Emit]:
    """A run directory that no one else writes to; a signal ends what is done there in order, and says how to go on."""
    try:
        with folder.held(), signals.SIGNALS.heard():
            yield recorder(folder, watch)
    except KeyboardInterrupt as error:
        raise Interrupted(resuming.advice(folder)) from error
    except OSError as error:
        if hint := files.disk_advice(error):
            raise UserError(files.first_line(error), hint=f"{hint}; {resuming.advice(folder)}") from error
        raise


@contextlib.contextmanager
def passing(prefix: str) -> Iterator[Path]:
    """A folder in the cache that is gone afterwards; so is a run in it, with which no one can go on."""
    root = cache_folder()
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
    try:
        yield folder
    except KeyboardInterrupt as error:
        raise Interrupted("nothing is kept of it but what was prepared") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def ready(recipe: Recipe, kinds: Sequence[str] = KINDS) -> list[Problem]:
    """Warnings of components of some kinds about this machine; raises UserError where one says that it cannot work.

    Nothing heavy may be imported before it: it says which package is missing.
    """
    problems = list(missing_packages(*PACKAGES, extra="train", path=("model",), why="reading text as tokens"))
    for kind, use in components(recipe):
        item = current().create(kind, use)
        if kind in kinds and hasattr(item, "ready"):
            problems += item.ready(recipe)
    if any(problem.severity == "error" for problem in problems):
        raise UserError(problems)
    return problems


def launchable(recipe: Recipe, node: Node | None, named: bool) -> None:
    """Raises UserError where the processes that the recipe asks for cannot train on this machine."""
    backend = current().create("backend", as_use(recipe.backend))
    topology.check(recipe, node, named, backend)


def fit(recipe: Recipe, folder: RunDir, emit: Emit) -> None:
    """Raises UserError where a component cannot work with what was prepared: now, not after hours of training."""
    made = [current().create(kind, use) for kind, use in components(recipe)]
    problems = [found for item in made if hasattr(item, "prepared") for found in item.prepared(recipe, folder.path)]
    if any(problem.severity == "error" for problem in problems):
        error = UserError(problems)
        folder.stage("train", "failed", reason=str(error))  # other nodes wait for it
        raise error
    for warning in problems:
        emit({"event": "warning", "message": str(warning)})


def begin(loaded: Loaded, path: Path, overrides: Sequence[str], folder: RunDir) -> None:
    """Fills a new run directory with the recipe as given, as resolved, and the lock."""
    folder.write("resolved.yaml", resolved_yaml(loaded.recipe))
    folder.write("recipe.yaml", path.read_text("utf-8-sig"))
    folder.write_json(directory.BEGUN, lockfile.facts(loaded.recipe, current(), overrides))


def recorder(folder: RunDir, watch: Emit) -> Emit:
    """Writes each event to events.jsonl and shows it to `watch`."""

    def emit(event: dict[str, object]) -> None:
        folder.event(event)
        watch(event)

    return emit


def staged(folder: RunDir, emit: Emit, name: str, work: Callable[[], None]) -> None:
    """Does the work of one stage, with a record of how it went."""
    emit({"event": "stage", "stage": name, "status": "started"})
    folder.stage(name, "started")
    started = time.monotonic()
    try:
        work()
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        with contextlib.suppress(OSError):  # a full disk takes no record of it either, and the error matters more
            folder.stage(name, status, reason=str(error) or type(error).__name__)
            emit({"event": "stage", "stage": name, "status": status})
        raise
    seconds = round(time.monotonic() - started, 2)
    folder.stage(name, "done", seconds=seconds)
    emit({"event": "stage", "stage": name, "status": "done", "seconds": seconds})
    signals.SIGNALS.check()


def once(folder: RunDir, emit: Emit, name: str, work: Callable[[], None]) -> None:
    """Does the work of a stage that is not done yet."""
    if folder.done(name):
        emit({"event": "stage", "stage": name, "status": "kept"})
    else:
        staged(folder, emit, name, work)


def _point_latest(folder: RunDir, emit: Emit) -> None:
    """For a run that has its name from its recipe; one that the user named is found by that name."""
    name = directory.STAMPED.fullmatch(folder.path.name)
    if not name:
        return
    try:
        directory.point_latest(folder, name[1])
    except OSError as error:  # a file system without links: the run itself is whole
        emit({"event": "warning", "message": f"no link {name[1]}-latest could be made: {error}"})


@contextlib.contextmanager
def explained(document: Document) -> Iterator[None]:
    """Gives problems that name a key of the recipe the place where it stands."""
    try:
        yield
    except UserError as error:
        raise UserError(_placed(problem, document) for problem in error.problems) from error


def _placed(problem: Problem, document: Document) -> Problem:
    if problem.where is not None or problem.path is None:
        return problem
    return msgspec.structs.replace(problem, where=document.place(problem.path))
