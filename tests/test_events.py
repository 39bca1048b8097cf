"""Events of a run: typed, written one a line, and never the end of a run, whatever a backend emits."""

import json

import numpy as np
import pytest

from sftrun import events
from sftrun.events import Custom, Eval, Malformed, StageChanged, Step, Warned, decode, encode, to_json
from sftrun.runs.directory import RunDir
from sftrun.runs.recorder import Recorder


def test_an_event_reads_like_the_line_that_it_becomes():
    step = Step(step=3, loss=0.5)
    assert (step["event"], step["loss"], step.get("tokens"), step.get("tokens", 7)) == ("step", 0.5, None, 7)
    assert json.loads(to_json(step)) == encode(step) == {"event": "step", "step": 3, "loss": 0.5}
    assert decode(encode(step)) == (step, None)


def test_a_number_of_a_library_is_written_as_a_number():
    assert json.loads(to_json(Step(step=1, loss=np.float32(0.5)))) == {"event": "step", "step": 1, "loss": 0.5}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"event": "step", "loss": 1.0}, "missing required field `step`"),
        ({"event": "step", "step": "one"}, "Expected `int`, got `str`"),
        ({"event": "stpe", "step": 1}, "there is no event of this name; did you mean 'step'?"),
        ({"event": "nothing like it"}, "emit sftrun.events.Custom for your own events"),
        ({"step": 1}, "it has no key 'event'"),
        ([1], "an event must be a JSON object"),
    ],
)
def test_what_is_no_event_says_why(data, reason):
    event, bad = decode(data)
    assert event is bad
    assert isinstance(bad, Malformed)
    assert reason in bad.reason


def test_an_unknown_key_is_left_out_and_said():
    event, bad = decode({"event": "step", "step": 1, "los": 2.0, "time": 5})
    assert event == Step(step=1)
    assert bad.reason == "unknown key 'los'; did you mean 'loss'?"


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path)


def test_what_cannot_be_read_is_counted_and_shown_once(run):
    shown = []
    record = Recorder(run, shown.append)
    record(StageChanged(stage="train", status="started"))
    for step in range(5):
        record({"event": "step", "step": step, "loss": 2.3, "los": 1.0})
        record({"event": "stpe"})
    assert [event.step for event in shown if isinstance(event, Step)] == [0, 1, 2, 3, 4]
    warnings = [event.message for event in shown if isinstance(event, Warned)]
    assert len(warnings) == 2
    assert "unknown key 'los'; did you mean 'loss'?" in warnings[0]
    assert sorted(run.facts("train")["malformed_events"].values()) == [5, 5]
    assert [event["loss"] for event in run.events() if event["event"] == "step"] == [2.3] * 5


def test_a_display_that_fails_is_dropped_and_the_run_goes_on(run):
    seen = []

    def broken(event):
        seen.append(event)
        raise KeyError("steps")

    record = Recorder(run, broken)
    record(Step(step=1))
    record(Eval(step=1, loss=0.5))
    assert seen == [Step(step=1)]
    assert [event["event"] for event in run.events()] == ["step", "warning", "eval"]
    assert "KeyError" in run.events()[1]["message"]


def test_an_event_of_a_plugin_is_kept_as_it_is(run):
    Recorder(run, print)(Custom(name="proved", data={"tokens": 3}))
    (kept,) = run.events()
    assert {key: kept[key] for key in ("event", "name", "data")} == {
        "event": "custom",
        "name": "proved",
        "data": {"tokens": 3},
    }


def test_every_event_is_documented_and_public():
    kinds = set(events.EVENTS.values())
    assert all(kind.__doc__ for kind in kinds)
    assert {kind.__name__ for kind in kinds} <= set(events.__all__)
