"""Code that trackers share: names of points, final scores, and a record of the points already sent."""

import os
from collections.abc import Iterator
from typing import Any

import msgspec

import sftrun

TAGS = {  # fields of a step, as transformers' trainer names them
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "epoch": "train/epoch",
    "tokens": "train/tokens",
    "trained_tokens": "train/trained_tokens",
    "tokens_per_s": "train/tokens_per_s",
    "trained_tokens_per_s": "train/trained_tokens_per_s",
}
OFF = {  # each library reads its own variable; some read it only on import
    "DO_NOT_TRACK": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
}
MEMORY = "trackers.json"


def switch_telemetry_off() -> None:
    """Switches off the telemetry of the libraries, unless the environment sets these variables."""
    for name, value in OFF.items():
        os.environ.setdefault(name, value)


def values(event: sftrun.events.Event) -> dict[str, float]:
    """Returns the points of an event by tag; none if the event is neither a step nor a validation loss."""
    if isinstance(event, sftrun.events.Step):
        points = {tag: getattr(event, field) for field, tag in TAGS.items()}
        return {tag: value for tag, value in points.items() if value is not None}
    return {"eval/loss": event.loss} if isinstance(event, sftrun.events.Eval) else {}


def run_name(run: sftrun.RunDir) -> str:
    """Returns the name of the run directory itself, not of the link `<recipe>-latest`."""
    return run.path.resolve().name


def config(recipe: sftrun.Recipe) -> dict[str, Any]:
    """Returns the recipe with every default; `${env:NAME}` stays as it is."""
    data: dict[str, Any] = msgspec.to_builtins(recipe)
    del data["extends"]
    return data


def scores(run: sftrun.RunDir) -> dict[str, float]:
    """Returns the final scores of both models by tag; none if the run is not evaluated."""
    by_model = run.read_json("eval/scores.json") if run.done("evaluate") else {}
    return {
        f"scores/{which}/{evaluator}/{metric}": value
        for which in ("base", "tuned")
        for evaluator, metrics in by_model.get(which, {}).items()
        for metric, value in metrics.items()
        if isinstance(value, int | float)
    }


class Sent:
    """The last training step and the last validation step that a tracker has sent, so that each point is sent once.

    A resumed run repeats steps with the same losses, and the libraries cannot remove a point.
    """

    def __init__(self) -> None:
        self.last: dict[type, int] = {}

    def add(self, event: sftrun.events.Event) -> bool:
        """Records an event with points; returns False if its step was sent before."""
        if not isinstance(event, sftrun.events.Step | sftrun.events.Eval):
            return False
        if event.step <= self.last.get(type(event), -1):
            return False
        self.last[type(event)] = event.step
        return True

    @property
    def step(self) -> int:
        """The last training step."""
        return self.last.get(sftrun.events.Step, 0)


def past(run: sftrun.RunDir) -> Iterator[tuple[sftrun.events.Event, float]]:
    """Yields the steps and validation losses of a run so far, each with its seconds before the last one."""
    events = [
        (sftrun.events.decode(data)[0], data["time"]) for data in run.events() if data["event"] in ("step", "eval")
    ]
    yield from ((event, events[-1][1] - time) for event, time in events)


class Memory:
    """Facts that a tracker keeps between two attempts of a run, by destination (`goal`) of the points."""

    def __init__(self, run: sftrun.RunDir, goal: str) -> None:
        self.run, self.goal = run, goal

    def sends_late(self, seconds: float) -> float:
        """Returns `seconds`, the points that a library may have lost, if the last attempt was killed; else 0."""
        return 0.0 if self.recall().get("finished") else seconds

    def recall(self) -> dict[str, Any]:
        """Returns the facts of earlier attempts."""
        return dict(self.run.read_json(MEMORY).get(self.goal, {}))

    def add(self, **facts: Any) -> None:
        """Writes facts to trackers.json in the run directory."""
        self.run.merge_json(MEMORY, {self.goal: {**self.recall(), **facts}})

    def new_scores(self) -> dict[str, float]:
        """Returns the final scores if they differ from the scores of the last call, in any attempt; else none."""
        latest = scores(self.run)
        if latest == self.recall().get("scores", {}):
            return {}
        self.add(scores=latest)
        return latest
