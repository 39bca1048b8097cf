"""Records the events of a run in events.jsonl, and passes them to the display and the trackers."""

import json
from collections import Counter
from collections.abc import Callable

from sftrun import scrub
from sftrun.errors import Interrupted
from sftrun.events import Event, Malformed, StageChanged, Warned, decode, to_json
from sftrun.kinds import Emit
from sftrun.runs.directory import RunDir

DISPLAY = "display"  # the listener that is no tracker


class Recorder:
    """A function of an event that writes it to events.jsonl, then passes it to the display and the trackers.

    A display or a tracker that fails is dropped with a warning, after the others have seen the event. An event that
    cannot be read is counted, and shown once. `stop_when` may end the run after an event, as a signal would.
    """

    def __init__(self, run: RunDir, watch: Emit, stop_when: Callable[[Event], bool] | None = None) -> None:
        self.run, self.stop_when = run, stop_when
        self.listeners: dict[str, Emit] = {DISPLAY: watch}
        self.malformed: Counter[str] = Counter()
        self.stage = ""

    def __call__(self, event: Event) -> None:
        event, bad = decode(event)
        event = _without_secrets(event)
        if isinstance(event, StageChanged):
            self.stage = event.stage
        if not isinstance(event, Malformed):
            self.run.event(event)
            self._show(event)
        if isinstance(event, Malformed) or bad:
            self._count(event if isinstance(event, Malformed) else bad)
        if self.stop_when and self.stop_when(event):
            raise Interrupted

    def warn_of(self, what: str, error: BaseException) -> None:
        """Records a warning about a failure."""
        self(Warned(message=f"{what}: {type(error).__name__}: {error}"))

    def _count(self, bad: Malformed | None) -> None:
        if bad is None:
            return
        self.malformed[f"{bad.kind}: {bad.reason}"] += 1
        if self.malformed[f"{bad.kind}: {bad.reason}"] == 1:
            self(
                Warned(
                    message=f"the event '{bad.kind}' could not be read in full, and is shown only once: {bad.reason}"
                )
            )
        if self.stage:
            self.run.add_facts(self.stage, malformed_events=dict(self.malformed))

    def _show(self, event: Event) -> None:
        failed: dict[str, BaseException] = {}
        for name, listener in list(self.listeners.items()):
            try:
                listener(event)
            except Exception as error:
                failed[name] = error
            except SystemExit as error:
                if name == DISPLAY:  # the caller's own function may end the program
                    raise
                failed[name] = error
        for name in failed:
            self.listeners.pop(name, None)
        # each warning is an event too; the remaining listeners get it after this one
        for name, reason in failed.items():
            self.warn_of(f"the {name} failed and gets no more events", reason)


def _without_secrets(event: Event) -> Event:
    """Returns an event as the display and the trackers may see it."""
    line = to_json(event)
    hidden = scrub.hide(line)
    return event if hidden == line else decode(json.loads(hidden))[0]
