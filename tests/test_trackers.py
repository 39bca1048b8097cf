"""Trackers: they are given every event in order, show each step once, send nothing unasked, and never end a run."""

import contextlib
import json
import os
import re
import shlex
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
from conftest import talk

from sftrun import Options, SecretText, Use, events, flow, hookimpl
from sftrun.errors import UserError
from sftrun.launch.topology import Node
from sftrun.recipe.model import typed_recipe
from sftrun.registry import current
from sftrun.runs import session
from sftrun.runs.directory import RunDir
from sftrun.runs.recorder import Recorder
from sftrun.tools import rehearse

SFTRUN_API = 1  # this file is a plugin, too
ROOT = Path(__file__).parents[1]
SCORES = {which: {"generation#2": {"exact_match": value}} for which, value in {"base": 0.0, "tuned": 0.75}.items()}


def needs(name):
    return pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed: sftrun[{name}]")


class Recording:
    """A tracker that keeps what it is given."""

    seen: list = []  # noqa: RUF012  (the fixture gives each test another)

    def start(self, work):
        self.note("start", work)

    def track(self, event):
        self.note("track", event)

    def finish(self, status):
        self.note("finish", status)

    def note(self, *what):
        self.seen.append(what)


class FailingOptions(Options):
    """How it fails."""

    at: str
    exits: bool = False
    key: SecretText = ""


class Failing(Recording):
    """A tracker that raises in one of its methods."""

    def __init__(self, options):
        self.options = options

    def note(self, *what):
        super().note(*what)
        if what[0] == self.options.at:
            raise (SystemExit if self.options.exits else RuntimeError)(f"no {what[0]} with {self.options.key}")


@hookimpl
def register_trackers(register):
    register("recording", Recording)
    register("failing", Failing, options=FailingOptions)


def failing(at, **options):
    return {"use": "failing", "with": {"at": at, **options}}


@pytest.fixture
def plugin(monkeypatch):
    """What the trackers of a plugin were given: `recording`, and `failing`."""
    monkeypatch.setattr(Recording, "seen", [])
    current().load(__name__, "recording", "1", lambda: sys.modules[__name__])
    assert {"recording", "failing"} <= set(current().names("tracker"))
    yield Recording.seen
    for name in ("recording", "failing"):
        del current().components["tracker"][name]


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    return RunDir(tmp_path / "run")


def recipe(*trackers, **keys):
    return typed_recipe(
        {
            "model": {"name": "sftrun/tiny"},
            "source": {"use": "jsonl", "with": {"path": "data"}},
            "trackers": list(trackers),
            **keys,
        }
    )


def follow(run, asked, *happened, resumed=False, watch=lambda event: None):
    """Shows events to the trackers of a recipe, as a run does; an exception among them ends the run."""
    recorder = Recorder(run, watch)
    with session.trackers(asked, recorder, resumed=resumed):
        for event in happened:
            if isinstance(event, BaseException):
                raise event
            recorder(event)


def steps(*numbers):
    return [events.Step(step=number, loss=1 / number, learning_rate=0.1, tokens_per_s=5.0) for number in numbers]


def warnings(run):
    return [event["message"] for event in run.events() if event["event"] == "warning"]


# What every tracker is given


def test_a_tracker_is_given_typed_events_in_order_between_start_and_finish(plugin, run):
    happened = [events.StageChanged(stage="train", status="started"), *steps(1, 2), events.Eval(step=2, loss=0.5)]
    follow(run, recipe("recording"), *happened, {"event": "checkpoint", "step": 2})
    assert [method for method, _ in plugin] == ["start", *["track"] * 5, "finish"]
    assert [event for method, event in plugin if method == "track"] == [*happened, events.Checkpoint(step=2)]
    work = plugin[0][1]
    assert (work.run, work.resumed, work.recipe.trackers) == (run, False, [Use(use="recording")])
    assert plugin[-1] == ("finish", "done")


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("no"), "failed"), (UserError("no"), "failed"), (KeyboardInterrupt(), "interrupted")],
)
def test_a_tracker_is_told_how_the_run_ended(plugin, run, error, status):
    with pytest.raises(type(error)):
        follow(run, recipe("recording"), *steps(1), error)
    assert plugin[-1] == ("finish", status)


def test_one_tracker_may_be_named_twice(plugin, run):
    follow(run, recipe("recording", "recording"), *steps(1))
    assert [method for method, _ in plugin] == ["start", "start", "track", "track", "finish", "finish"]


@pytest.mark.parametrize("exits", [False, True])
@pytest.mark.parametrize("method", ["start", "track", "finish"])
def test_a_tracker_that_fails_never_ends_a_run_and_is_shown_once(plugin, run, exits, method):
    seen = []
    follow(run, recipe(failing(method, exits=exits), "recording"), *steps(1, 2, 3), watch=seen.append)
    (said,) = warnings(run)
    assert said.startswith("the tracker failing ")
    assert said.endswith(f"{'SystemExit' if exits else 'RuntimeError'}: no {method} with ")
    assert [event.message for event in seen if event["event"] == "warning"] == [said]
    assert [event.step for event in seen if event["event"] == "step"] == [1, 2, 3]
    given = [event for name, event in plugin if name == "track" and event.get("step") == 2]
    assert len(given) == (2 if method == "finish" else 1)  # the other goes on


def test_trackers_that_fail_together_are_each_shown_once_and_after_the_event(plugin, run):
    follow(run, recipe(failing("track"), "recording", failing("track")), *steps(1, 2))
    assert [said.split(" failed")[0] for said in warnings(run)] == ["the tracker failing", "the tracker failing #2"]
    assert [event["event"] for event in run.events()] == ["step", "warning", "warning", "step"]
    kinds = [type(event).__name__ for name, event in plugin if name == "track"]
    assert kinds == ["Step", "Step", "Step", "Warned", "Warned", "Step"]  # three are given the first


@pytest.mark.parametrize("method", ["start", "track", "finish"])
def test_a_warning_of_a_tracker_holds_no_secret(plugin, run, monkeypatch, method):
    monkeypatch.setenv("TOKEN", "hunter2")
    follow(run, recipe(failing(method, key="${env:TOKEN}")), *steps(1))
    assert "hunter2" not in (run.path / "events.jsonl").read_text()
    assert warnings(run)[0].endswith(f"no {method} with ${{env:TOKEN}}")


# Which commands start them


def small(write, *trackers):
    return write([talk("2+2?", "4")] * 4, trackers=list(trackers))


def test_preparing_starts_no_tracker(plugin, write, tmp_path):
    flow.prepare(small(write, "recording", "tensorboard"), out=tmp_path / "run")
    assert plugin == []
    assert not (tmp_path / "run/tensorboard").exists()


def test_nodes_other_than_the_first_start_no_tracker(plugin, write, tmp_path, monkeypatch):
    def join(loaded, out, node, watch, target, stages):
        watch(events.Joining(status="waiting", node=node.rank, nodes=2))
        return RunDir(out)

    monkeypatch.setattr(flow.follower, "join", join)
    file = small(write, "recording")
    seen = []
    flow.run(file, ["launch.nodes=2"], tmp_path / "run", seen.append, node=Node(1, "localhost:1"))
    assert seen
    assert plugin == []


def test_without_trackers_nothing_is_written(run):
    follow(run, recipe(), *steps(1))
    assert [path.name for path in run.path.iterdir()] == ["events.jsonl"]


def test_a_rehearsal_sends_nothing_to_a_tracker(tmp_path):
    asked = recipe("tensorboard", {"use": "wandb", "with": {"mode": "online"}})
    (local,) = [
        each for each in rehearse._shrink_recipe(asked, tmp_path, "sftrun/tiny") if each.startswith("trackers=")
    ]
    assert json.loads(local.removeprefix("trackers=")) == [{"use": "tensorboard", "with": {}}]
    assert "trackers: nothing is sent to wandb" in rehearse._list_left_out(asked, Counter())


# The libraries themselves, without a network


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder for what the libraries write, which read these variables when they are imported."""
    folder = tmp_path_factory.mktemp("trackers")
    before = dict(os.environ)
    os.environ |= {"TRACKIO_DIR": str(folder / "trackio"), "WANDB_API_KEY": "k" * 40, "HOME": str(folder)}
    yield folder
    os.environ.clear()
    os.environ.update(before)


def evaluated(run):
    run.stage("evaluate", "done")
    run.write_json("eval/scores.json", {**SCORES, "metrics": {}})


def wandb_records(run):
    """The records of a W&B run's files, oldest first, in the format of LevelDB's log."""
    from wandb.proto import wandb_internal_pb2

    for file in sorted(run.path.glob("wandb/offline-run-*/run-*.wandb")):
        data, at, whole = file.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
            length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
            whole += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # a whole record, or the last part of one
                record = wandb_internal_pb2.Record()
                record.ParseFromString(whole)
                whole = b""
                yield record


class WandbRun:
    def __init__(self, run, home):
        until = time.monotonic() + 30  # seconds; W&B's own process writes the end after finish() is back
        while not self._whole(run) and time.monotonic() < until:
            time.sleep(0.1)

    def _whole(self, run):
        self.records = list(wandb_records(run))
        kinds = [record.WhichOneof("record_type") for record in self.records]
        return kinds.count("exit") == len(list(run.path.glob("wandb/offline-run-*")))

    def points(self, tag):
        rows = [
            {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for record in self.records
            if record.WhichOneof("record_type") == "history"
        ]
        return [(row["train/global_step"], row[tag]) for row in rows if tag in row]

    def scores(self):
        found = {}
        for record in self.records:
            for item in record.summary.update:
                found[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        return {key: value for key, value in found.items() if key.startswith("scores/")}

    def runs(self):
        return [record.run for record in self.records if record.WhichOneof("record_type") == "run"]

    def ids(self):
        return {each.run_id for each in self.runs()}

    def status(self):
        codes = [record.exit.exit_code for record in self.records if record.WhichOneof("record_type") == "exit"]
        return {0: "done", 1: "failed", 130: "interrupted"}[codes[-1]]

    def text(self):
        return str(self.records)


class MlflowRun:
    def __init__(self, run, home, file="mlflow.db"):
        import mlflow

        self.client = mlflow.MlflowClient(f"sqlite:///{home / file}")
        self.found = self.client.search_runs([each.experiment_id for each in self.client.search_experiments()])
        self.found = [each for each in self.found if each.info.run_name == run.path.name]

    def points(self, tag):
        history = self.client.get_metric_history(self.found[0].info.run_id, tag)
        return [(metric.step, metric.value) for metric in history]

    def scores(self):
        tags = [tag for tag in self.found[0].data.metrics if tag.startswith("scores/")]
        assert all(len(self.points(tag)) == 1 for tag in tags)
        return {tag: self.points(tag)[0][1] for tag in tags}

    def ids(self):
        return {each.info.run_id for each in self.found}

    def status(self):
        return {"FINISHED": "done", "FAILED": "failed", "KILLED": "interrupted"}[self.found[0].info.status]

    def text(self):
        return str(self.found)


class TrackioRun:
    def __init__(self, run, home, project="sftrun"):
        self.file, self.name = home / "trackio" / f"{project}.db", run.path.name

    def rows(self, query):
        with contextlib.closing(sqlite3.connect(self.file)) as database:
            return database.execute(query, [self.name]).fetchall()

    def points(self, tag):
        found = self.rows("select step, metrics from metrics where run_name = ? order by id")
        return [(step, json.loads(text)[tag]) for step, text in found if tag in json.loads(text)]

    def scores(self):
        found = [json.loads(text) for (text,) in self.rows("select metrics from metrics where run_name = ?")]
        scored = [each for each in found if any(tag.startswith("scores/") for tag in each)]
        assert len(scored) <= 1
        return scored[0] if scored else {}

    def ids(self):
        return {each for (each,) in self.rows("select distinct run_id from metrics where run_name = ?")}

    def config(self):
        return json.loads(self.rows("select config from configs where run_name = ?")[0][0])

    def status(self):
        return self.rows("select title from alerts where run_name = ? order by id")[-1][0].removeprefix("run ")

    def text(self):
        return json.dumps(self.config())


def asked_for(home, library, /, **options):
    usual = {"wandb": {"mode": "offline"}, "mlflow": {"tracking_uri": str(home / "mlflow.db")}, "trackio": {}}
    return recipe({"use": library, "with": {**usual[library], **options}}, seed=77)


READ = {"wandb": WandbRun, "mlflow": MlflowRun, "trackio": TrackioRun}
LIBRARIES = [pytest.param(name, marks=[needs(name), pytest.mark.slow]) for name in READ]


@pytest.fixture
def named(tmp_path, request):
    """A run directory with a name that no other test gives a run."""
    folder = tmp_path / f"run-{abs(hash(request.node.name))}"
    folder.mkdir()
    return RunDir(folder)


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_run_that_is_stopped_and_resumed_is_one_run_with_each_step_once(name, named, home, capsys):
    asked = asked_for(home, name)
    with pytest.raises(KeyboardInterrupt):
        follow(named, asked, *steps(1, 2, 3), events.Eval(step=3, loss=0.5), *steps(4), KeyboardInterrupt())
    assert READ[name](named, home).status() == "interrupted"
    again = [events.Resumed(step=2), *steps(3), events.Eval(step=3, loss=0.5), *steps(4, 5)]
    happened = [*again, events.Eval(step=5, loss=0.25), events.Custom(name="x", data={"y": 1})]
    evaluated(named)
    follow(named, asked, *happened, resumed=True)
    follow(named, asked, resumed=True)  # of a run that is done
    found = READ[name](named, home)
    assert warnings(named) == []
    assert len(found.ids()) == 1
    assert found.points("train/loss") == [(number, pytest.approx(1 / number)) for number in range(1, 6)]
    assert [step for step, _ in found.points("train/learning_rate")] == [1, 2, 3, 4, 5]
    assert [step for step, _ in found.points("train/tokens_per_s")] == [1, 2, 3, 4, 5]
    assert found.points("eval/loss") == [(3, 0.5), (5, 0.25)]
    number = "generation_2" if name == "mlflow" else "generation#2"
    assert found.scores() == {f"scores/base/{number}/exact_match": 0.0, f"scores/tuned/{number}/exact_match": 0.75}
    assert found.status() == "done"
    assert "77" in found.text()
    assert capsys.readouterr().out == ""  # stdout is for results


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_tracker_that_is_named_when_a_run_is_resumed_shows_all_of_it(name, named, home):
    follow(named, recipe(), *steps(1, 2), events.Eval(step=2, loss=0.5))
    follow(named, asked_for(home, name), events.Resumed(step=1), *steps(2, 3), resumed=True)
    found = READ[name](named, home)
    assert [step for step, _ in found.points("train/loss")] == [1, 2, 3]
    assert found.points("eval/loss") == [(2, 0.5)]


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_tracker_says_that_a_run_has_failed(name, named, home):
    with pytest.raises(ValueError, match="broken"):
        follow(named, asked_for(home, name), *steps(1), ValueError("broken"))
    found = READ[name](named, home)
    assert found.status() == "failed"
    assert found.scores() == {}


KILLED = """
import os, sys
from test_trackers import RunDir, Path, Recorder, events, json, session, steps, typed_recipe
run = RunDir(Path(sys.argv[1]))
recorder = Recorder(run, print)
with session.trackers(typed_recipe(json.loads(sys.argv[2])), recorder, resumed=False):
    for event in [*steps(1, 2, 3), events.Eval(step=3, loss=0.5)]:
        recorder(event)
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("name", LIBRARIES)
def test_points_that_a_library_had_not_written_when_all_was_killed_are_sent_again(name, named, home):
    asked = asked_for(home, name)
    plain = msgspec.to_builtins(asked)
    del plain["extends"]
    folders = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    words = [sys.executable, "-c", KILLED, str(named.path), json.dumps(plain)]
    kept = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}  # of this process
    done = subprocess.run(words, env={**kept, "PYTHONPATH": folders}, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    follow(named, asked, events.Resumed(step=2), *steps(3, 4), resumed=True)
    found = READ[name](named, home)
    assert sorted({step for step, _ in found.points("train/loss")}) == [1, 2, 3, 4]
    assert {step for step, _ in found.points("eval/loss")} == {3}


@needs("mlflow")
@pytest.mark.slow
def test_mlflow_keeps_params_and_tags_what_has_changed_since(named, home):
    follow(named, asked_for(home, "mlflow"), *steps(1))
    other = asked_for(home, "mlflow")
    changed = typed_recipe({**msgspec.to_builtins(other), "description": "another"})
    follow(named, changed, *steps(2), resumed=True)
    (found,) = MlflowRun(named, home).found
    assert found.data.params["description"] == ""
    assert found.data.tags["changed.description"] == "another"
    assert found.data.params["train.learning_rate"] == json.dumps(other.train.learning_rate)


# Options


@needs("wandb")
@pytest.mark.slow
def test_the_options_of_wandb_say_where_the_run_goes(named, home):
    options = {"project": "mine", "entity": "team", "name": "first", "tags": ["a", "b"]}
    follow(named, asked_for(home, "wandb", **options), *steps(1))
    said = WandbRun(named, home).runs()[0]
    assert (said.project, said.entity, said.display_name, list(said.tags)) == ("mine", "team", "first", ["a", "b"])


@needs("wandb")
@pytest.mark.slow
def test_the_mode_of_wandb_is_that_of_the_recipe_or_the_environment(named, home, monkeypatch):
    follow(named, asked_for(home, "wandb", mode="disabled"), *steps(1))
    assert list(wandb_records(named)) == []
    monkeypatch.setenv("WANDB_MODE", "offline")
    follow(named, asked_for(home, "wandb", mode=None), *steps(2), resumed=True)
    assert WandbRun(named, home).points("train/loss") == [(1, 1.0), (2, 0.5)]


def test_wandb_online_needs_a_key_before_anything_starts(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_CONFIG_DIR", "NETRC", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def keys(**options):
        tracker = current().create("tracker", Use(use="wandb", with_=options))
        return [str(each) for each in tracker.check_machine(recipe()) if "API key" in each.message]

    assert "mode: offline" in keys()[0]
    assert keys(mode="offline") == keys(mode="disabled") == []
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password x\n")
    assert keys() == []
    (tmp_path / ".netrc").unlink()
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb/settings").write_text("[default]\nmode = offline\n")
    assert keys() == []
    assert keys(mode="online")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert keys(mode="online") == []


@needs("mlflow")
@pytest.mark.slow
def test_the_options_of_mlflow_say_where_the_run_goes(named, home, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'another.db'}")
    options = {"tracking_uri": None, "experiment": "mine", "name": named.path.name + "x", "tags": {"team": "a"}}
    follow(named, asked_for(home, "mlflow", **options), *steps(1))
    (found,) = MlflowRun(RunDir(named.path.with_name(named.path.name + "x")), home, "another.db").found
    client = MlflowRun(named, home, "another.db").client
    assert client.get_experiment(found.info.experiment_id).name == "mine"
    assert found.data.tags["team"] == "a"


def test_mlflow_takes_no_password_that_is_written_down(write, sftrun):
    def said(address):
        file = small(write, {"use": "mlflow", "with": {"tracking_uri": address}})
        return sftrun("validate", file).err

    assert "password, which may not be written down" in said("postgresql://me:hunter2@host/db")
    assert "hunter2" not in said("postgresql://me:hunter2@host/db")
    for address in ("postgresql://me:${env:PW}@host/db", "https://host:5000", "mlflow.db", "${env:MLFLOW_URI}"):
        assert "password" not in said(address)


@needs("trackio")
@pytest.mark.slow
def test_the_options_of_trackio_say_where_the_run_goes(named, home):
    name = named.path.name + "x"
    follow(named, asked_for(home, "trackio", project="mine", name=name, group="g"), *steps(1))
    found = TrackioRun(RunDir(named.path.with_name(name)), home, "mine")
    assert found.points("train/loss") == [(1, 1.0)]
    assert found.config()["_Group"] == "g"


@needs("trackio")
@pytest.mark.slow
def test_a_space_of_trackio_is_private_unless_the_recipe_says_otherwise(named, home, monkeypatch):
    import trackio

    asked = []

    def init(**options):
        asked.append((options["space_id"], options["private"]))
        raise ConnectionError("no network here")

    monkeypatch.setattr(trackio, "init", init)
    for options in ({"space": "me/curves"}, {"space": "me/curves", "private": False}):
        follow(named, asked_for(home, "trackio", **options), *steps(1))
    assert asked == [("me/curves", True), ("me/curves", False)]
    assert ["did not start" in said for said in warnings(named)] == [True, True]


@pytest.mark.parametrize("name", READ)
def test_a_library_that_is_missing_is_named_with_its_extra(name, monkeypatch):
    monkeypatch.setattr("sftrun.errors.find_spec", lambda module: None)
    tracker = current().create("tracker", Use(use=name, with_={}))
    said = str(next(iter(tracker.check_machine(recipe()))))
    assert f"pip install 'sftrun[{name}]'" in said


def test_telemetry_is_off_unless_the_environment_says_otherwise(monkeypatch):
    from sftrun.builtin.trackers import _points

    for name in _points.OFF:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DO_NOT_TRACK", "0")
    _points.switch_telemetry_off()
    assert {name: os.environ[name] for name in _points.OFF} == {**_points.OFF, "DO_NOT_TRACK": "0"}
    for name in _points.OFF:
        monkeypatch.delenv(name)


# Whole runs

PROGRAM = """
import sys
import sftrun
sets = ["train.max_steps=4", "train.logging_steps=1", "train.eval_strategy=steps", "train.eval_steps=2",
        "evaluators=[loss]", *sys.argv[3:]]
run = sftrun.run(sys.argv[1], sets, out=sys.argv[2], resume=True)
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""


def whole(out, *sets, **environment):
    """Runs recipes/chat.yaml for four steps, in a process of its own."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in ("WANDB_MODE", "WANDB_SERVICE", "MLFLOW_TRACKING_URI")
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(ROOT / "recipes/chat.yaml"), str(out), *sets],
        env={**kept, "PYTHONPATH": str(ROOT), **environment},
        cwd=out.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return RunDir(out)


@pytest.mark.slow
@pytest.mark.skipif(not all(map(find_spec, READ)), reason="not every tracker is installed")
def test_a_whole_run_is_in_every_tracker_and_no_secret_is(tmp_path):
    trackers = [
        "tensorboard",
        {"use": "wandb", "with": {"mode": "offline"}},
        {"use": "mlflow", "with": {"tracking_uri": "${env:MLFLOW_PLACE}"}},
        "trackio",
    ]
    environment = {
        "WANDB_API_KEY": "hunter2" + "k" * 33,
        "MLFLOW_PLACE": f"sqlite:///{tmp_path}/hunter2.db",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
    }
    for _ in range(2):  # the second time the run is done, and resumed
        run = whole(tmp_path / "run", "train.warmup=1", f"trackers={json.dumps(trackers)}", **environment)
    assert warnings(run) == []
    recorded = [(event["step"], event["loss"]) for event in run.events() if event["event"] == "step"]
    for kind in (WandbRun, MlflowRun, TrackioRun):
        found = kind(run, tmp_path, *(["hunter2.db"] if kind is MlflowRun else []))
        assert found.points("train/loss") == [(step, pytest.approx(loss)) for step, loss in recorded]
        assert [step for step, _ in found.points("eval/loss")] == [2, 4]
        assert {"scores/base/loss/val_loss", "scores/tuned/loss/test_loss"} <= set(found.scores())
        assert found.status() == "done"
        assert len(found.ids()) == 1
    assert curve(run, "train/loss") == [(step, pytest.approx(loss)) for step, loss in recorded]
    assert [step for step, _ in curve(run, "eval/loss")] == [2, 4]
    for file in (path for path in run.path.rglob("*") if path.is_file()):
        assert b"hunter2" not in file.read_bytes(), file


def curve(run, tag):
    """What TensorBoard shows of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [(each.step, each.value) for each in EventAccumulator(str(run.tensorboard)).Reload().Scalars(tag)]


# The page


BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "docs/trackers.md").read_text("utf-8"), re.M | re.S)


def test_the_tracker_of_the_page_follows_a_run(run, capsys):
    (text,) = [text for kind, text in BLOCKS if kind == "python"]
    module = ModuleType("printed")
    module.SFTRUN_API = 1
    exec(compile(text, "trackers.md", "exec"), module.__dict__)
    current().load("printed", "printed", "1", lambda: module)
    try:
        follow(run, recipe("printed"), *steps(1, 2))
    finally:
        del current().components["tracker"]["printed"]
    assert capsys.readouterr().out == "run 1 1.0\nrun 2 0.5\nrun done\n"


@needs("mlflow")
@pytest.mark.slow
def test_the_command_of_the_page_adds_a_tracker_to_a_run(write, sftrun, tmp_path, monkeypatch):
    (text,) = [text for kind, text in BLOCKS if kind == "console"]
    out = tmp_path / "runs/chat-20270101-000000"
    flow.run(small(write), ["train.max_steps=2", "train.logging_steps=1"], out)
    monkeypatch.chdir(tmp_path)
    assert sftrun(*shlex.split(text.removeprefix("$ sftrun "))).code == 0
    assert [step for step, _ in MlflowRun(RunDir(out), tmp_path).points("train/loss")] == [1, 2]


def test_the_page_names_what_is_switched_off_and_every_tracker():
    from sftrun.builtin.trackers import _points

    page = (ROOT / "docs/trackers.md").read_text("utf-8")
    assert all(f"`{name}`" in page for name in _points.OFF)
    named = re.findall(r"^\| `(\w+)` \|", page, re.M)
    builtin = [each.name for each in current().components["tracker"].values() if each.distribution == "sftrun"]
    assert sorted(named) == sorted(builtin)
