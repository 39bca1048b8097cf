"""Tracker `mlflow`: a run of MLflow, on a server or in an SQLite file."""

import json
import logging
import os
import re
import time
from collections.abc import Iterator
from typing import Annotated, Any
from urllib.parse import urlsplit

import sftrun
from sftrun.builtin.trackers import _points

STATUSES = {"done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
LONGEST = 6000  # characters of a param; the lowest limit among MLflow's stores
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
}  # seconds, and tries: a run waits meanwhile
SERVERS = ("http://", "https://", "databricks")


class MlflowOptions(sftrun.Options):
    """The destination of the run, and its name."""

    tracking_uri: Annotated[
        sftrun.PathText | None,
        sftrun.Meta(
            description="URL of a tracking server or a database, or the path of an SQLite file; null follows "
            "MLFLOW_TRACKING_URI, else `mlflow.db` in the working directory. A password may only be `${env:NAME}`."
        ),
    ] = None
    experiment: Annotated[str, sftrun.Meta(description="Experiment of the run; created if it does not exist.")] = (
        "sftrun"
    )
    name: Annotated[str | None, sftrun.Meta(description="Name of the run; null is the name of the run directory.")] = (
        None
    )
    tags: Annotated[dict[str, str], sftrun.Meta(description="Tags of the run, and their values.")] = {}  # noqa: RUF012  (msgspec copies it)


@sftrun.hookimpl
def register_trackers(register: sftrun.Register) -> None:
    register("mlflow", Mlflow, options=MlflowOptions)


class Mlflow:
    """Curves, recipe and scores on an MLflow server, or in an SQLite file. Needs `sftrun[mlflow]`."""

    def __init__(self, options: MlflowOptions) -> None:
        self.options = options
        self.sent = _points.Sent()

    def check_recipe(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        for use in recipe.trackers:
            address = str(use.with_.get("tracking_uri") or "") if use.use == "mlflow" else ""
            # no recipe path: the message would show the line with the password
            if "://" in address and "${env:" not in (urlsplit(address).password or "${env:"):
                message = "tracking_uri of the tracker mlflow has a password, which may not be written down"
                yield sftrun.Problem(message, hint="write ${env:NAME} in its place, and set the variable NAME")

    def check_machine(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        modules = ["mlflow"] if (self._uri() or "").startswith(SERVERS) else ["mlflow", "sqlalchemy", "alembic"]
        yield from sftrun.missing_packages(*modules, extra="mlflow", path=("trackers",), why="the tracker mlflow")

    def start(self, work: sftrun.kinds.Tracking) -> None:
        _points.switch_telemetry_off()
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        import mlflow

        for name in ("mlflow", "alembic"):  # they log a line for each table of a new database
            logging.getLogger(name).setLevel(logging.WARNING)
        uri = self._uri()
        self.client: Any = mlflow.MlflowClient(uri)
        self.memory = _points.Memory(work.run, f"mlflow {self.options.experiment}")
        self.id: str = self._reopen() or self._create_run(_points.run_name(work.run))
        self._log_recipe(_points.config(work.recipe))
        for event, _ in _points.past(work.run):
            self.track(event)

    def track(self, event: sftrun.events.Event) -> None:
        if self.sent.add(event):
            self._log(_points.values(event), event["step"])

    def finish(self, status: str) -> None:
        self._log(self.memory.new_scores(), self.sent.step)
        self.client.set_tag(self.id, "status", status)
        self.client.set_terminated(self.id, STATUSES[status])

    def _uri(self) -> str | None:
        given = self.options.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or None
        return f"sqlite:///{given}" if given and os.path.isabs(given) else given

    def _create_run(self, name: str) -> str:
        existing = self.client.get_experiment_by_name(self.options.experiment)
        experiment = existing.experiment_id if existing else self.client.create_experiment(self.options.experiment)
        created = self.client.create_run(experiment, run_name=self.options.name or name, tags=self.options.tags)
        identity: str = created.info.run_id
        self.memory.add(id=identity, scores={})
        return identity

    def _reopen(self) -> str | None:
        """Returns the id of an earlier attempt's run if the server still has it, and records the steps already sent."""
        from mlflow.exceptions import MlflowException

        identity: str | None = self.memory.recall().get("id")
        if identity is None:
            return None
        try:
            self.client.update_run(identity, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        for kind, tag in ((sftrun.events.Step, "train/loss"), (sftrun.events.Eval, "eval/loss")):
            steps = [metric.step for metric in self.client.get_metric_history(identity, tag)]
            if steps:
                self.sent.last[kind] = max(steps)
        return identity

    def _log(self, values: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(_allowed(tag), float(value), now, step) for tag, value in values.items()]
        if metrics:
            self.client.log_batch(self.id, metrics=metrics)

    def _log_recipe(self, config: dict[str, Any]) -> None:
        """Logs the recipe as params; a param cannot change, so values changed since an earlier attempt become tags."""
        from mlflow.entities import Param, RunTag

        before = self.client.get_run(self.id).data.params
        now = {_allowed(key): text[:LONGEST] for key, text in _flatten(config, "")}
        params = [Param(key, text) for key, text in now.items() if key not in before]
        tags = [RunTag(f"changed.{key}", text) for key, text in now.items() if before.get(key, text) != text]
        if params or tags:
            self.client.log_batch(self.id, params=params, tags=tags)


def _allowed(name: str) -> str:
    """Returns a name with `_` for characters that MLflow refuses, such as `#` in `generation#2`."""
    return re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)


def _flatten(data: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """Yields dotted keys and their values as text."""
    for key, value in data.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"{prefix}{key}", text
