"""What trackers share: the names of the points, the final scores, and the memory of what was sent before."""

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
OFF = {  # each library reads its own variable, some of them only when they are imported
    "DO_NOT_TRACK": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
}
MEMORY = "trackers.json"


def switch_telemetry_off() -> None:
    """Keeps the libraries from reporting on themselves, unless the environment says otherwise."""
    for name, value in OFF.items():
        os.environ.setdefault(name, value)


def values(event: sftrun.events.Event) -> dict[str, float]:
    """Returns the points of an event by tag; none if the event is neither a step nor a validation loss."""
    if isinstance(event, sftrun.events.Step):
        found = {tag: getattr(event, field) for field, tag in TAGS.items()}
        return {tag: value for tag, value in found.items() if value is not None}
    return {"eval/loss": event.loss} if isinstance(event, sftrun.events.Eval) else {}


def run_name(run: sftrun.RunDir) -> str:
    """Returns the name of the run directory; `<recipe>-latest` leads to it, and is not its name."""
    return run.path.resolve().name


def config(recipe: sftrun.Recipe) -> dict[str, Any]:
    """Returns the recipe with every default; `${env:NAME}` stays as it is."""
    data: dict[str, Any] = msgspec.to_builtins(recipe)
    del data["extends"]
    return data


def scores(run: sftrun.RunDir) -> dict[str, float]:
    """Returns the final scores of both models by tag; none if the run is not evaluated."""
    found = run.read_json("eval/scores.json") if run.done("evaluate") else {}
    return {
        f"scores/{which}/{evaluator}/{metric}": value
        for which in ("base", "tuned")
        for evaluator, metrics in found.get(which, {}).items()
        for metric, value in metrics.items()
        if isinstance(value, int | float)
    }


class Sent:
    """The last step that a tracker has, of steps and of validation losses: each is shown once.

    A resumed run does steps again, with the same losses; libraries append, and cannot take a point back.
    """

    def __init__(self) -> None:
        self.last: dict[type, int] = {}

    def add(self, event: sftrun.events.Event) -> bool:
        """Notes an event with points; returns False if its step was sent before."""
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
    """Yields the steps and validation losses of a run so far, and how many seconds before the last of them each was."""
    found = [
        (sftrun.events.decode(data)[0], data["time"]) for data in run.events() if data["event"] in ("step", "eval")
    ]
    yield from ((event, found[-1][1] - time) for event, time in found)


class Memory:
    """What a tracker remembers of a run between two attempts, by where the points go to."""

    def __init__(self, run: sftrun.RunDir, goal: str) -> None:
        self.run, self.goal = run, goal

    def sends_late(self, seconds: float) -> float:
        """Returns how many seconds of points a library may have lost in an attempt that was killed; 0 after others."""
        return 0.0 if self.recall().get("finished") else seconds

    def recall(self) -> dict[str, Any]:
        return dict(self.run.read_json(MEMORY).get(self.goal, {}))

    def add(self, **facts: Any) -> None:
        """Writes facts to trackers.json in the run directory."""
        self.run.merge_json(MEMORY, {self.goal: {**self.recall(), **facts}})

    def new_scores(self) -> dict[str, float]:
        """Returns the final scores, if they are not those of the last call in any attempt."""
        found = scores(self.run)
        if found == self.recall().get("scores", {}):
            return {}
        self.add(scores=found)
        return found
