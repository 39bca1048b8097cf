"""Tracker `wandb`: a run of Weights & Biases, online or in files of the run directory."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import sftrun
from sftrun.builtin.trackers import _points

STEP = "train/global_step"  # the x axis of every curve, as transformers' trainer names it
EXIT_CODES = {"done": 0, "failed": 1, "interrupted": 130}
PATIENCE = 300  # seconds for the upload at the end; the rest stays on disk, for `wandb sync`
LATE = 15.0  # seconds between two writes of its process; points of this time are lost in a kill
KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")


class WandbOptions(sftrun.Options):
    """The destination of the run, and its name."""

    project: Annotated[str, sftrun.Meta(description="Project of the run.")] = "sftrun"
    entity: Annotated[
        str | None, sftrun.Meta(description="User or team that owns the project; null is your default entity.")
    ] = None
    name: Annotated[str | None, sftrun.Meta(description="Name of the run; null is the name of the run directory.")] = (
        None
    )
    tags: Annotated[tuple[str, ...], sftrun.Meta(description="Tags of the run.")] = ()
    mode: Annotated[
        Literal["online", "offline", "disabled"] | None,
        sftrun.Meta(
            description="offline writes to `wandb/` in the run directory, for `wandb sync`; disabled does nothing; "
            "null follows WANDB_MODE, else online."
        ),
    ] = None


@sftrun.hookimpl
def register_trackers(register: sftrun.Register) -> None:
    register("wandb", Wandb, options=WandbOptions)


class Wandb:
    """Curves, recipe and scores on Weights & Biases, or in `wandb/` of the run directory. Needs `sftrun[wandb]`."""

    def __init__(self, options: WandbOptions) -> None:
        self.options = options
        self.sent = _points.Sent()

    def check_machine(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        yield from sftrun.missing_packages("wandb", extra="wandb", path=("trackers",), why="the tracker wandb")
        mode = self.options.mode or os.environ.get("WANDB_MODE") or _setting("mode") or "online"
        if mode in ("online", "run") and not _has_key():
            message = "the tracker wandb is online, and there is no API key of Weights & Biases"
            hint = "run wandb login, or set WANDB_API_KEY; or write mode: offline"
            yield sftrun.Problem(message, path=("trackers",), hint=hint)

    def start(self, work: sftrun.kinds.Tracking) -> None:
        _points.switch_telemetry_off()
        import wandb

        options = self.options
        self.memory = _points.Memory(work.run, f"wandb {options.entity or ''}/{options.project}")
        known, late = self.memory.recall().get("id"), self.memory.sends_late(LATE)
        mode: Any = options.mode or os.environ.get("WANDB_MODE")  # wandb reads the variable once in a process
        identity = known or uuid.uuid4().hex[:12]
        self.run: Any = wandb.init(
            project=options.project,
            entity=options.entity,
            name=options.name or _points.run_name(work.run),
            tags=list(options.tags),
            mode=mode,
            id=identity,
            resume="allow",
            dir=str(work.run.path),
            settings=wandb.Settings(
                reinit="create_new",  # does not end a run of the program that called sftrun
                console="off",  # the display of sftrun owns the terminal
                disable_code=True,
                disable_git=True,  # a remote's address may hold a password; lock.json has the commit
                finish_timeout=float(os.environ.get("WANDB_FINISH_TIMEOUT", PATIENCE)),
                max_end_of_run_history_metrics=0,
                max_end_of_run_summary_metrics=0,
            ),
        )
        if not self.run.disabled:
            self.memory.add(id=identity, finished=False)
        self.run.config.update(_points.config(work.recipe), allow_val_change=True)
        self.run.define_metric(STEP, hidden=True)
        for tags in ("train/*", "eval/*"):
            self.run.define_metric(tags, step_metric=STEP)
        for event, age in _points.past(work.run):
            if known and age >= late:
                self.sent.add(event)
            else:
                self.track(event)

    def track(self, event: sftrun.events.Event) -> None:
        if self.sent.add(event):
            self.run.log({**_points.values(event), STEP: event["step"]})

    def finish(self, status: str) -> None:
        self.run.summary.update({**_points.scores(self.memory.run), "status": status})
        self.run.finish(exit_code=EXIT_CODES[status])
        self.memory.add(finished=True)


def _has_key() -> bool:
    """Returns True if W&B finds credentials where it looks for them."""
    if any(os.environ.get(name) for name in KEYS) or _setting("api_key"):
        return True
    host = (os.environ.get("WANDB_BASE_URL") or _setting("base_url") or "https://api.wandb.ai").split("://")[-1]
    files = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]
    texts = [Path(file).expanduser() for file in files if file]
    return any(host.strip("/") in file.read_text("utf-8", "replace") for file in texts if file.is_file())


def _setting(name: str) -> str | None:
    """Returns a setting from W&B's own files; the file of the current folder has priority."""
    import configparser

    folder = os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb"
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read([Path(folder).expanduser() / "settings", Path("wandb/settings")], "utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return None
    return parser.get("default", name, fallback=None)
