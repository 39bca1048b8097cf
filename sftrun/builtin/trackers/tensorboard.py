"""Tracker `tensorboard`: curves in the run's folder `tensorboard/`, for `tensorboard --logdir runs`."""

import time
from typing import Any

import sftrun
from sftrun.builtin.trackers import _points


@sftrun.hookimpl
def register_trackers(register: sftrun.Register) -> None:
    register("tensorboard", TensorBoard)


class TensorBoard:
    """Curves for TensorBoard, written to tensorboard/ in the run directory."""

    writer: Any = None

    def check_machine(self, recipe: sftrun.Recipe) -> Any:
        return sftrun.missing_packages("tensorboard", extra="train", path=("trackers",), why="the tracker tensorboard")

    def start(self, work: sftrun.kinds.Tracking) -> None:
        # not torch's writer: the parent process never imports torch
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        work.run.tensorboard.mkdir(exist_ok=True)
        self.writer = EventFileWriter(str(work.run.tensorboard))

    def track(self, event: sftrun.events.Event) -> None:
        if isinstance(event, sftrun.events.Step | sftrun.events.Eval):
            self._write(event.step, _points.values(event))
        elif isinstance(event, sftrun.events.Resumed):
            self._hide_after(event.step)

    def finish(self, status: str) -> None:
        if self.writer is not None:
            self.writer.close()

    def _write(self, step: int, values: dict[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        points = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self.writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=points)))
        self.writer.flush()

    def _hide_after(self, step: int) -> None:
        """Hides the points of steps that will be repeated."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        start = SessionLog(status=SessionLog.SessionStatus.START)
        self.writer.add_event(Event(wall_time=time.time(), step=step + 1, session_log=start))
