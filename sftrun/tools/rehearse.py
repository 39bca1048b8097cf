"""`sftrun rehearse`: runs every stage of a recipe with its tokenizer, template and first rows, and a tiny model."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import msgspec

from sftrun import flow, tiny
from sftrun.errors import Interrupted, UserError
from sftrun.events import Checkpoint, Event, RehearsedStop
from sftrun.kinds import Emit
from sftrun.launch import topology, workers
from sftrun.launch.signals import SIGNALS
from sftrun.recipe.model import LaunchOptions, Recipe
from sftrun.recipe.validate import PathLike, load_with_places
from sftrun.registry import current
from sftrun.runs import base, directory, preflight, session
from sftrun.runs.directory import RunDir
from sftrun.types import BadRow

STEPS = 4  # optimizer steps
INTERVAL = 2  # steps between evaluations, and between saves
BATCH = 4  # rows in a batch, at most
LOCAL = ("tensorboard",)  # trackers that send nothing: the curves of random weights belong on no server


class Rehearsal(msgspec.Struct, frozen=True):
    """The parts of a recipe that were exercised and those that were left out; `run` is the run directory, if kept."""

    exercised: list[str]
    left_out: list[str]
    run: str | None = None


class Listener:
    """A listener that records events and passes them on; `stop` ends the run after the first checkpoint."""

    def __init__(self, watch: Emit) -> None:
        self.watch = watch
        self.events: list[Event] = []
        self.stopped = False

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self.watch(event)

    def stop(self, event: Event) -> bool:
        """Returns True for the first checkpoint, unless training ends with it."""
        if not isinstance(event, Checkpoint) or event.step >= STEPS or self.stopped:
            return False
        self.stopped = True
        self.watch(RehearsedStop(step=event.step))
        return True


def rehearse(
    source: PathLike | Recipe,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    watch: Emit = lambda event: None,
    rows: int = 24,
) -> Rehearsal:
    """Runs a recipe on the first `rows` rows of each split with a tiny random model; raises UserError as `run` does.

    The embedded model is small enough as it is. Without `out`, deletes the run at the end.
    """
    loaded = load_with_places(source, overrides)
    recipe = loaded.recipe
    listener = Listener(watch)

    def rehearse_in(folder: Path) -> Rehearsal:
        with session.with_places(loaded.document):
            taken = _take_rows(recipe, folder / "rows", rows)
            name = _make_tiny_model(recipe, folder)
        sets = [*overrides, *_shrink_recipe(recipe, folder / "rows", name)]
        run = _run_and_resume(source, sets, folder / "run", listener)
        return _summarise(recipe, run, listener, taken)

    with session.with_places(loaded.document):
        preflight.check_machine(recipe)
    if out:
        folder = directory.create(Path(loaded.name), Path(out)).path
        return msgspec.structs.replace(rehearse_in(folder), run=str(folder / "run"))
    with session.temporary_folder(".rehearsal-") as folder:
        return rehearse_in(folder)


def _run_and_resume(recipe: PathLike | Recipe, sets: list[str], out: Path, listener: Listener) -> RunDir:
    try:
        return flow.run(recipe, sets, out, listener, stop_when=listener.stop)
    except Interrupted:
        if not listener.stopped or SIGNALS.received:
            raise
        return flow.resume(out, (), listener)


def _take_rows(recipe: Recipe, folder: Path, count: int) -> Counter[str]:
    """Writes the first rows of each split as JSON lines, and counts them; raises UserError for malformed rows."""
    source = current().create("source", recipe.source)
    folder.mkdir(parents=True)
    taken: Counter[str] = Counter()
    for split in source.splits():
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for row in islice(source.rows(split), count):
                if not isinstance(row, BadRow):
                    file.write(json.dumps(row.data, ensure_ascii=False, default=str) + "\n")
                    taken[split] += 1
                elif recipe.data.on_bad_row == "error":
                    raise UserError(f"{source.locate(row.origin)}: {row.reason}")
    return taken


def _make_tiny_model(recipe: Recipe, folder: Path) -> str:
    """Returns the name of the model to train: the embedded one, or the path of a new tiny one."""
    if recipe.model.name == tiny.NAME:
        return tiny.NAME
    base.find_commit(recipe.model)  # raises, as the run would, if its weights are pickled
    making = RunDir(folder)
    making.write_recipe(recipe)
    workers.run_in_worker("sftrun.tools.rehearse:shrink_in_worker", making, lambda event: None)
    return str(folder / "model")


def shrink_in_worker(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    """Writes the tiny model to `model/`, in a worker process."""
    from sftrun.data.tokens.tokenizer import load_tokenizer
    from sftrun.tools import shrink

    shrink.save_tiny_model(load_tokenizer(recipe.model).folder, run.model, recipe.seed, recipe.model)


def _shrink_recipe(recipe: Recipe, rows: Path, model: str) -> Iterator[str]:
    """Yields overrides that make a recipe small."""
    train = recipe.train
    source = {"use": "jsonl", "with": {"path": str(rows), "val_share": 0}}
    yield f"source={json.dumps(source)}"
    if model != tiny.NAME:
        yield f"model.name={model}"
        yield "model.revision=null"
    yield f"launch={json.dumps(msgspec.to_builtins(LaunchOptions(processes=1)))}"
    yield "data.max_lost=1"  # a few rows may all be too long
    yield "expect_mask=null"
    local = [use for use in recipe.trackers if use.use in LOCAL]
    yield f"trackers={json.dumps(msgspec.to_builtins(local))}"
    yield f"train.max_steps={STEPS}"
    yield f"train.epochs={STEPS * BATCH * BATCH}"  # enough epochs for max_steps steps
    yield "train.logging_steps=1"
    yield "train.effective_batch_size=null"
    yield f"train.batch_size={BATCH if train.batch_size == 'auto' else min(train.batch_size, BATCH)}"
    for key in ("eval_batch_size", "grad_accum"):
        yield f"train.{key}={min(getattr(train, key), BATCH)}"
    if train.warmup:
        yield "train.warmup=1"  # a share of so few steps would be none, and a longer warm-up would never end
    if train.early_stopping:
        yield "train.early_stopping.patience=1"  # a longer patience could not stop so short a run
    for key in ("eval", "save"):
        if getattr(train, f"{key}_strategy") != "no":
            yield f"train.{key}_strategy=steps"
            yield f"train.{key}_steps={INTERVAL}"


def _summarise(recipe: Recipe, run: RunDir, listener: Listener, taken: Counter[str]) -> Rehearsal:
    counts = Counter(event["event"] for event in listener.events)
    exercised = [
        *_describe_prepare(recipe, run, taken),
        *_describe_train(recipe, counts, listener.stopped),
        *_describe_later_stages(recipe, run),
    ]
    return Rehearsal(exercised, list(_list_left_out(recipe, counts)))


def _describe_prepare(recipe: Recipe, run: RunDir, taken: Counter[str]) -> Iterator[str]:
    stats = run.read_json("prepared/stats.json")["train"]
    rows = ", ".join(f"{number} of {split}" for split, number in taken.items())
    yield f"rows: the first ones of the source {recipe.source.use} ({rows})"
    names = ", ".join(each.use for each in (*recipe.transforms, recipe.formatter, recipe.masker))
    yield f"prepare: {names}; {stats['trained_tokens']:,} of {stats['tokens']:,} tokens trained, the mask proven"
    if "packing" in stats:
        yield f"pack: {stats['packing']['sequences']} sequences; a check shows that they do not attend to each other"


def _describe_train(recipe: Recipe, counts: Counter[str], stopped: bool) -> Iterator[str]:
    yield f"train: {STEPS} steps in mode {recipe.tuning.mode} by the backend {recipe.backend.use}"
    if counts["eval"]:
        yield f"validate: {counts['eval']} times while training"
    if counts["checkpoint"]:
        yield f"save: {counts['checkpoint']} checkpoints"
    if stopped:
        yield "resume: stopped after the first checkpoint, and resumed from it"


def _describe_later_stages(recipe: Recipe, run: RunDir) -> Iterator[str]:
    if recipe.evaluators:
        yield f"evaluate: {', '.join(run.read_json('eval/scores.json')['tuned'])}, base and tuned model"
    if recipe.exporters:
        yield f"export: {', '.join(run.read_json('export/facts.json'))}"
    yield "report: report.html and the model card"


def _list_left_out(recipe: Recipe, counts: Counter[str]) -> Iterator[str]:
    if recipe.model.name != tiny.NAME:
        yield f"the weights of {recipe.model.name}: a tiny random model of its architecture replaced it"
    yield "all other rows: sftrun prepare looks at every one"
    yield "memory and time of the real model: sftrun plan --probe measures them"
    if recipe.train.batch_size == "auto":
        yield "the choice of train.batch_size: sftrun plan shows it"
    if sent := [use.use for use in recipe.trackers if use.use not in LOCAL]:
        yield f"trackers: nothing is sent to {', '.join(sent)}"
    if topology.world_size(recipe) > 1:
        yield f"training in {topology.world_size(recipe)} processes: a single one trained"
    if not counts["eval"]:
        reason = "the recipe turns it off" if recipe.train.eval_strategy == "no" else "there are no validation rows"
        yield f"validation while training: {reason}"
    if not counts["checkpoint"]:
        yield "checkpoints, and resuming: the recipe saves none"
    for name in ("evaluators", "exporters"):
        if not getattr(recipe, name):
            yield f"{name}: the recipe names none"
