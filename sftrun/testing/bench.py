"""A bench for backends: trainings of the embedded model on a few rows, in this process."""

import itertools
import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sftrun import flow, tiny
from sftrun.errors import UserError
from sftrun.events import Event, Step
from sftrun.kinds import Backend, Loading, Model, Training
from sftrun.recipe.checks import CORE_KEYS
from sftrun.registry import current
from sftrun.runs.directory import RunDir
from sftrun.testing.examples import check_event

SPLITS = {"train": range(8), "val": range(8, 12)}  # numbers to count to, so that rows have different lengths


@dataclass(frozen=True)
class Attempt:
    """One training: its run, and its events."""

    run: RunDir
    events: list[Event]

    def losses(self) -> dict[int, float]:
        """Returns the training loss by step."""
        return {event.step: event.loss for event in self.of(Step) if event.loss is not None}

    def of(self, kind: type[Any]) -> list[Any]:
        """Returns the events of a type."""
        return [event for event in self.events if isinstance(event, kind)]


class Bench:
    """A backend, and the folder in which it trains."""

    def __init__(self, backend: Backend, overrides: Sequence[str], folder: Path) -> None:
        self.backend = backend
        self.folder = folder
        self.honours = frozenset(backend.honours)
        self.numbers = itertools.count()  # names of run directories
        self.overrides = [*_backend_of(backend), *overrides]
        for split, numbers in SPLITS.items():
            (folder / f"{split}.jsonl").write_text("".join(map(_row, numbers)), "utf-8")
        source = {"use": "jsonl", "with": {"path": ".", "val_share": 0}}
        recipe = {"model": {"name": tiny.NAME, "max_seq_len": 96}, "source": source, "tuning": {"mode": "full"}}
        (folder / "recipe.yaml").write_text(json.dumps(recipe), "utf-8")  # JSON is YAML

    def prepared(self, settings: Mapping[str, Any]) -> RunDir:
        """Returns a run with prepared rows; settings that the backend does not honour are left out."""
        kept = {key: value for key, value in settings.items() if key in self.honours | CORE_KEYS}
        texts = [f"{key}={json.dumps(value)}" for key, value in kept.items()]
        try:
            return flow.prepare(
                self.folder / "recipe.yaml", [*texts, *self.overrides], self.folder / str(next(self.numbers))
            )
        except UserError as error:
            raise AssertionError(f"the recipe of the check is refused; change it by overrides: {error}") from error

    def trained(self, settings: Mapping[str, Any]) -> Attempt:
        """Trains a new run to its end."""
        return self.train(self.prepared(settings))

    def train(self, run: RunDir, stop: Callable[[Event], bool] = lambda event: False) -> Attempt:
        """Trains a run, and sends this process SIGTERM after an event for which `stop` is true."""
        events: list[Event] = []

        def emit(event: Event) -> None:
            check_event(event)
            events.append(event)
            run.event(event)
            if stop(event):
                os.kill(os.getpid(), signal.SIGTERM)

        before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            self.backend.train(Training(recipe=run.recipe(), run=run, emit=emit))
        finally:
            signal.signal(signal.SIGTERM, before)
        return Attempt(run, events)

    def load(self, run: RunDir, which: Literal["base", "tuned"] = "tuned") -> Model:
        """Returns the model of a run before or after training."""
        return self.backend.load(Loading(recipe=run.recipe(), run=run, which=which))


def _backend_of(backend: Backend) -> list[str]:
    """Returns the override that names a registered backend; a recipe names `hf` for any other."""
    registered = current().components["backend"].values()
    return [f"backend={item.name}" for item in registered if item.factory is type(backend)]


def _row(number: int) -> str:
    question = {"role": "user", "content": f"Count to {number}!"}
    answer = {"role": "assistant", "content": " ".join(map(str, range(number + 1)))}
    return json.dumps({"messages": [question, answer]}) + "\n"


def change_rows(run: RunDir, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes every prepared training row (`input_ids`, `labels`); the cache keeps what it has."""
    import pyarrow as pa

    file = run.prepared / "train.arrow"
    table = pa.ipc.open_stream(file.read_bytes()).read_all()
    rows = table.to_pylist()
    for row in rows:
        change(row)
    with pa.OSFile(str(file), "wb") as out, pa.ipc.new_stream(out, table.schema) as stream:
        stream.write_table(pa.Table.from_pylist(rows, schema=table.schema))
