"""Promises of a tracker."""

import contextlib
import copy
import tempfile
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import msgspec

from sftrun import kinds, tiny
from sftrun.events import EVENTS, Event
from sftrun.options import Use
from sftrun.recipe.model import ModelOptions, Recipe
from sftrun.runs.directory import RunDir
from sftrun.testing.folders import contents, working_folder

Status = Literal["done", "failed", "interrupted"]
STATUSES: tuple[Status, ...] = get_args(Status)
EXAMPLES = {str: "text", int: 3, float: 0.5, bool: True, Any: "text"}


def check_tracker(tracker: kinds.Tracker) -> None:
    """Raises AssertionError unless a tracker takes every event, in any order and with its required fields alone.

    It is started as new and as resumed, ended with each status, and ended without having been started. It may add files
    to the run directory, or to a folder or service of its options; nothing else of the run, and nothing in the current
    folder, may change. Each attempt is with a copy of the tracker, as each run has its own.
    """
    events = [_example(each) for each in EVENTS.values()]
    complete = [_example(each, optional=True) for each in EVENTS.values()]
    orders = {"done": events, "failed": events[::-1], "interrupted": [*complete, *events]}
    with tempfile.TemporaryDirectory() as folder:
        run = _begin_run(Path(folder) / "run")
        current = Path(folder) / "current"
        current.mkdir()
        before = contents(run.path)
        with working_folder(current):
            for status in STATUSES:
                for resumed in (False, True):
                    _follow(copy.deepcopy(tracker), run, resumed, orders[status], status)
            with _no_error("finish() without start()"):
                copy.deepcopy(tracker).finish("failed")
        after = contents(run.path)
        changed = sorted(name for name, digest in before.items() if after.get(name) != digest)
        assert not changed, f"the tracker changed {', '.join(changed)} of the run"
        left = sorted(contents(current))
        assert not left, f"the tracker wrote {', '.join(left)} into the current folder; write below work.run.path"


def _follow(tracker: kinds.Tracker, run: RunDir, resumed: bool, events: Sequence[Event], status: Status) -> None:
    recipe = Recipe(model=ModelOptions(name=tiny.NAME), source=Use(use="jsonl"))
    with _no_error(f"start() of a {'resumed' if resumed else 'new'} run"):
        tracker.start(kinds.Tracking(recipe=recipe, run=run, resumed=resumed))
    for event in events:
        with _no_error(f"track() of {event!r}"):
            tracker.track(event)
    with _no_error(f"finish({status!r})"):
        tracker.finish(status)


@contextlib.contextmanager
def _no_error(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{what} must not fail: {type(error).__name__}: {error}") from error


def _begin_run(folder: Path) -> RunDir:
    """Returns a run directory with the files of a run that has begun."""
    run = RunDir(folder)
    run.write("resolved.yaml", f"model: {{name: {tiny.NAME}}}\n")
    run.write_json("state.json", {"prepare": {"status": "done"}})
    run.write_json("lock.json", {})
    run.write("events.jsonl", "")
    return run


def _example(event: type[Event], optional: bool = False) -> Event:
    """Returns an event with values for its required fields, or for all."""
    fields = msgspec.structs.fields(event)
    required = [field for field in fields if optional or field.required]
    return event(**{field.name: _value(field.type) for field in required})


def _value(kind: Any) -> Any:
    """Returns an example of a value of an event field's type."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Literal:
        return inside[0]
    if origin in (Union, types.UnionType):
        return _value(inside[0])
    if origin is tuple:
        return tuple(map(_value, inside))
    if origin is list:
        return [_value(inside[0])]
    if origin is dict:
        return {_value(inside[0]): _value(inside[1])}
    return EXAMPLES[kind] if kind in EXAMPLES else kind("text")
