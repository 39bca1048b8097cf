"""What happens to an event of a run: it is written down, and shown to the display and the trackers."""

from collections import Counter
from collections.abc import Callable

from sftrun.errors import Interrupted
from sftrun.events import Event, Malformed, StageChanged, Warned, decode
from sftrun.kinds import Emit
from sftrun.runs.directory import RunDir


class Recorder:
    """Writes each event to events.jsonl, then shows it to the display and the trackers.

    A display or a tracker that fails is dropped with a warning. An event that cannot be read is counted, and shown
    once. `stop_when` may end the run after an event, as a signal would.
    """

    def __init__(self, run: RunDir, watch: Emit, stop_when: Callable[[Event], bool] | None = None) -> None:
        self.run, self.stop_when = run, stop_when
        self.listeners: dict[str, Emit] = {"display": watch}
        self.malformed: Counter[str] = Counter()
        self.stage = ""

    def __call__(self, event: Event) -> None:
        event, bad = decode(event)
        if isinstance(event, StageChanged):
            self.stage = event.stage
        if not isinstance(event, Malformed):
            self.run.event(event)
            self._show(event)
        if isinstance(event, Malformed) or bad:
            self._count(event if isinstance(event, Malformed) else bad)
        if self.stop_when and self.stop_when(event):
            raise Interrupted

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
        for name, listener in list(self.listeners.items()):
            try:
                listener(event)
            except Exception as error:
                del self.listeners[name]
                self(Warned(message=f"the {name} failed and gets no more events: {type(error).__name__}: {error}"))
