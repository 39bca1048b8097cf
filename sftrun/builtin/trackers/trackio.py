"""Tracker `trackio`: a run of Trackio, in a local database or on a Hugging Face Space."""

import contextlib
import contextvars
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import sftrun
from sftrun.builtin.trackers import _points

LATE = 1.0  # seconds until points are in the database, with a margin


class TrackioOptions(sftrun.Options):
    """The destination of the run, and its name."""

    project: Annotated[str, sftrun.Meta(description="Project of the run.")] = "sftrun"
    name: Annotated[str | None, sftrun.Meta(description="Name of the run; null is the name of the run directory.")] = (
        None
    )
    group: Annotated[str | None, sftrun.Meta(description="Group of related runs of a project.")] = None
    space: Annotated[
        str | None,
        sftrun.Meta(
            description="Hugging Face Space that gets the run, `user/name`; created if missing. null keeps it "
            "in Trackio's database on this machine, in TRACKIO_DIR."
        ),
    ] = None
    private: Annotated[bool, sftrun.Meta(description="If the Space is created, only its owner can see it.")] = True


@sftrun.hookimpl
def register_trackers(register: sftrun.Register) -> None:
    register("trackio", Trackio, options=TrackioOptions)


class Trackio:
    """Curves, recipe and scores in Trackio, on this machine or on a Hugging Face Space. Needs `sftrun[trackio]`."""

    def __init__(self, options: TrackioOptions) -> None:
        self.options = options
        self.sent = _points.Sent()

    def check_machine(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        yield from sftrun.missing_packages("trackio", extra="trackio", path=("trackers",), why="the tracker trackio")

    def start(self, work: sftrun.kinds.Tracking) -> None:
        _points.switch_telemetry_off()
        options = self.options
        self.memory = _points.Memory(work.run, f"trackio {options.space or ''}/{options.project}")
        known, late = self.memory.recall().get("name"), self.memory.sends_late(LATE)
        name = known or options.name or _points.run_name(work.run)
        # its own context: Trackio would end the run that is open in the caller's context
        self.run: Any = contextvars.Context().run(self._open, name, "allow" if known else "never", work.recipe)
        self.memory.add(name=name, finished=False)
        for event, age in _points.past(work.run):
            if known and age >= late:
                self.sent.add(event)
            else:
                self.track(event)

    def _open(self, name: str, resume: str, recipe: sftrun.Recipe) -> Any:
        options = self.options
        with _on_stderr():
            import trackio

            return trackio.init(
                project=options.project,
                name=name,
                group=options.group,
                space_id=options.space,
                private=options.private,
                config=_points.config(recipe),
                resume=resume,
                embed=False,
            )

    def track(self, event: sftrun.events.Event) -> None:
        if self.sent.add(event):
            self.run.log(_points.values(event), step=event["step"])

    def finish(self, status: str) -> None:
        from trackio import AlertLevel

        levels = {"done": AlertLevel.INFO, "failed": AlertLevel.ERROR, "interrupted": AlertLevel.WARN}
        with _on_stderr():
            if scores := self.memory.new_scores():
                self.run.log(scores, step=self.sent.step)
            self.run.alert(title=f"run {status}", level=levels[status])  # a run of Trackio has no status
            self.run.finish()
        self.memory.add(finished=True)


@contextlib.contextmanager
def _on_stderr() -> Iterator[None]:
    """A redirection of the library's output to stderr: stdout is for results only."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
