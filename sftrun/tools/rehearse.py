"""A recipe in small: its own tokenizer, template and first rows, and a tiny model, through every stage."""

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
from sftrun.runs import directory, preflight, session
from sftrun.runs.directory import RunDir
from sftrun.types import BadRow

STEPS, EVERY, LARGEST = 4, 2, 4  # optimizer steps, steps between evaluations and saves, rows in a batch
LOCAL = ("tensorboard",)  # trackers that send nothing: the curves of random weights belong on no server


class Rehearsal(msgspec.Struct, frozen=True):
    """What was run, line by line, and what was not; `run` is the run directory, if it was kept."""

    exercised: list[str]
    left_out: list[str]
    run: str | None = None


class Listener:
    """Keeps the events and passes them on; `stop` ends the run after its first checkpoint, so that it is resumed."""

    def __init__(self, watch: Emit) -> None:
        self.watch = watch
        self.seen: list[Event] = []
        self.stopped = False

    def __call__(self, event: Event) -> None:
        self.seen.append(event)
        self.watch(event)

    def stop(self, event: Event) -> bool:
        """True for the first checkpoint, unless training ends with it."""
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
    """Runs a recipe on its first `rows` rows a split with a tiny random model; raises UserError as `run` does.

    The embedded model is used as it is. Without `out` nothing is kept.
    """
    loaded = load_with_places(source, overrides)
    recipe, heard = loaded.recipe, Listener(watch)

    def within(folder: Path) -> Rehearsal:
        with session.with_places(loaded.document):
            taken = _take_rows(recipe, folder / "rows", rows)
            name = _miniature(recipe, folder)
        run = _run(source, [*overrides, *_sets(recipe, folder / "rows", name)], folder / "run", heard)
        return _told(recipe, run, heard, taken)

    with session.with_places(loaded.document):
        preflight.check_machine(recipe)
    if out:
        folder = directory.create(Path(loaded.name), Path(out)).path
        return msgspec.structs.replace(within(folder), run=str(folder / "run"))
    with session.temporary_folder(".rehearsal-") as folder:
        return within(folder)


def _run(recipe: PathLike | Recipe, sets: list[str], out: Path, heard: Listener) -> RunDir:
    try:
        return flow.run(recipe, sets, out, heard, stop_when=heard.stop)
    except Interrupted:
        if not heard.stopped or SIGNALS.asked:
            raise
        return flow.resume(out, (), heard)


def _take_rows(recipe: Recipe, folder: Path, count: int) -> Counter[str]:
    """Writes the first rows of each split as JSON lines, and counts them; raises UserError for rows that are bad."""
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


def _miniature(recipe: Recipe, folder: Path) -> str:
    """The name of the model to train: the embedded one, or a tiny one that is made here."""
    if recipe.model.name == tiny.NAME:
        return tiny.NAME
    making = RunDir(folder)
    making.write_recipe(recipe)
    workers.work("sftrun.tools.rehearse:shrink_here", making, lambda event: None)
    return str(folder / "model")


def shrink_here(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    """Makes the tiny model in `model/`; runs in a worker process."""
    from sftrun.data.tokens.tokenizer import load_tokenizer
    from sftrun.tools import shrink

    shrink.save(load_tokenizer(recipe.model).folder, run.model, recipe.seed)


def _sets(recipe: Recipe, rows: Path, model: str) -> Iterator[str]:
    """Overrides that make a recipe small."""
    train = recipe.train
    source = {"use": "jsonl", "with": {"path": str(rows), "val_share": 0}}
    yield f"source={json.dumps(source)}"
    if model != tiny.NAME:
        yield f"model.name={model}"
        yield "model.revision=null"
    yield f"launch={json.dumps(msgspec.to_builtins(LaunchOptions(processes=1)))}"
    yield "data.max_lost=1"  # of a few rows, any share may be too long
    yield "expect_mask=null"
    local = [use for use in recipe.trackers if use.use in LOCAL]
    yield f"trackers={json.dumps(msgspec.to_builtins(local))}"
    yield f"train.max_steps={STEPS}"
    yield f"train.epochs={STEPS * LARGEST * LARGEST}"  # so many that max_steps decides
    yield "train.logging_steps=1"
    yield "train.effective_batch_size=null"
    yield f"train.batch_size={LARGEST if train.batch_size == 'auto' else min(train.batch_size, LARGEST)}"
    for key in ("eval_batch_size", "grad_accum"):
        yield f"train.{key}={min(getattr(train, key), LARGEST)}"
    if train.early_stopping:
        yield "train.early_stopping.patience=1"  # more evaluations than there are could not stop anything
    for key in ("eval", "save"):
        if getattr(train, f"{key}_strategy") != "no":
            yield f"train.{key}_strategy=steps"
            yield f"train.{key}_steps={EVERY}"


def _told(recipe: Recipe, run: RunDir, heard: Listener, taken: Counter[str]) -> Rehearsal:
    counts = Counter(event["event"] for event in heard.seen)
    exercised = [*_prepared(recipe, run, taken), *_trained(recipe, counts, heard.stopped), *_finished(recipe, run)]
    return Rehearsal(exercised, list(_left_out(recipe, counts)))


def _prepared(recipe: Recipe, run: RunDir, taken: Counter[str]) -> Iterator[str]:
    stats = run.read_json("prepared/stats.json")["train"]
    rows = ", ".join(f"{number} of {split}" for split, number in taken.items())
    yield f"rows: the first ones of the source {recipe.source.use} ({rows})"
    names = ", ".join(each.use for each in (*recipe.transforms, recipe.formatter, recipe.masker))
    yield f"prepare: {names}; {stats['trained_tokens']:,} of {stats['tokens']:,} tokens trained, the mask proven"
    if "packing" in stats:
        yield f"pack: {stats['packing']['sequences']} sequences, shown not to see each other"


def _trained(recipe: Recipe, counts: Counter[str], stopped: bool) -> Iterator[str]:
    yield f"train: {STEPS} steps in mode {recipe.tuning.mode} by the backend {recipe.backend.use}"
    if counts["eval"]:
        yield f"validate: {counts['eval']} times while training"
    if counts["checkpoint"]:
        yield f"save: {counts['checkpoint']} checkpoints"
    if stopped:
        yield "resume: stopped after the first checkpoint, and gone on from there"


def _finished(recipe: Recipe, run: RunDir) -> Iterator[str]:
    if recipe.evaluators:
        yield f"evaluate: {', '.join(run.read_json('eval/scores.json')['tuned'])}, base and tuned model"
    if recipe.exporters:
        yield f"export: {', '.join(run.read_json('export/facts.json'))}"
    yield "report: report.html and the model card"


def _left_out(recipe: Recipe, counts: Counter[str]) -> Iterator[str]:
    if recipe.model.name != tiny.NAME:
        yield f"the weights of {recipe.model.name}: a tiny random model of its architecture stood in"
    yield "all other rows: sftrun prepare looks at every one"
    yield "memory and time of the real model: sftrun plan --probe measures them"
    if recipe.train.batch_size == "auto":
        yield "the choice of train.batch_size: sftrun plan shows it"
    if sent := [use.use for use in recipe.trackers if use.use not in LOCAL]:
        yield f"trackers: nothing is sent to {', '.join(sent)}"
    if topology.size(recipe) > 1:
        yield f"training in {topology.size(recipe)} processes: one stood in"
    if not counts["eval"]:
        reason = "the recipe wants none" if recipe.train.eval_strategy == "no" else "there are no validation rows"
        yield f"validation while training: {reason}"
    if not counts["checkpoint"]:
        yield "checkpoints, and resuming: the recipe saves none"
    for name in ("evaluators", "exporters"):
        if not getattr(recipe, name):
            yield f"{name}: the recipe names none"
