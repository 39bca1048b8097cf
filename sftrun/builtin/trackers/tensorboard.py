"""Tracker `tensorboard`: curves in the run's folder `tensorboard/`, for `tensorboard --logdir runs`."""

import time
from typing import Any

import sftrun
from sftrun import events

TAGS = {  # of the fields of a step, as transformers' trainer names them
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "epoch": "train/epoch",
    "tokens": "train/tokens",
    "trained_tokens": "train/trained_tokens",
    "tokens_per_s": "train/tokens_per_s",
    "trained_tokens_per_s": "train/trained_tokens_per_s",
}


@sftrun.hookimpl
def register_trackers(register: sftrun.Register) -> None:
    register("tensorboard", TensorBoard)


class TensorBoard:
    """Curves for TensorBoard, written to tensorboard/ in the run directory."""

    writer: Any = None

    def check_machine(self, recipe: sftrun.Recipe) -> Any:
        return sftrun.missing_packages("tensorboard", extra="train", path=("trackers",), why="the tracker tensorboard")

    def start(self, work: sftrun.kinds.Tracking) -> None:
        # the package tensorboard alone: the parent process never imports torch
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        work.run.tensorboard.mkdir(exist_ok=True)
        self.writer = EventFileWriter(str(work.run.tensorboard))

    def track(self, event: sftrun.events.Event) -> None:
        if isinstance(event, events.Step):
            values = {tag: getattr(event, field) for field, tag in TAGS.items()}
            self._write(event.step, {tag: value for tag, value in values.items() if value is not None})
        elif isinstance(event, events.Eval):
            self._write(event.step, {"eval/loss": event.loss})
        elif isinstance(event, events.Resumed):
            self._hide_after(event.step)

    def finish(self, status: str) -> None:
        if self.writer is not None:
            self.writer.close()

    def _write(self, step: int, values: dict[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        found = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self.writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=found)))
        self.writer.flush()

    def _hide_after(self, step: int) -> None:
        """Hides the points of steps that are done again."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        start = SessionLog(status=SessionLog.SessionStatus.START)
        self.writer.add_event(Event(wall_time=time.time(), step=step + 1, session_log=start))
