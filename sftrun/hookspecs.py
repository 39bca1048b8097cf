"""The hooks of a plugin, one per kind of component; each calls `register` once per component."""

from collections.abc import Callable
from typing import Any, Protocol

import pluggy

PROJECT = "sftrun"
API_VERSION = 1
OLDEST_API_VERSION = 1  # plugins that need an older one are refused
KINDS = (
    *("source", "transform", "formatter", "masker", "backend", "evaluator", "judge", "exporter"),
    *("metric", "tracker"),
)

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Register(Protocol):
    """The function that a hook calls once per component."""

    def __call__(
        self,
        name: str,
        factory: Callable[..., Any] | str,
        *,
        options: type | None = None,
        description: str | None = None,
    ) -> None:
        """Registers a component under `name`.

        `factory` is called with the options, or with nothing if no options type is given. A string
        (`"package.module:Class"`) is imported on first use. By default the description is the first line of the
        factory's docstring, or of the plugin module's if the factory is a string.
        """


@hookspec
def register_sources(register: Register) -> None:
    """Registers sources: they yield rows, split by split."""


@hookspec
def register_transforms(register: Register) -> None:
    """Registers transforms: they turn conversations into fewer, more or changed ones."""


@hookspec
def register_formatters(register: Register) -> None:
    """Registers formatters: they turn one row into a conversation."""


@hookspec
def register_maskers(register: Register) -> None:
    """Registers maskers: they choose the spans that are trained."""


@hookspec
def register_backends(register: Register) -> None:
    """Registers backends: they load, train and save a model."""


@hookspec
def register_evaluators(register: Register) -> None:
    """Registers evaluators: they score the base and the tuned model."""


@hookspec
def register_judges(register: Register) -> None:
    """Registers judges: they grade one answer."""


@hookspec
def register_exporters(register: Register) -> None:
    """Registers exporters: they turn the result into something to deploy."""


@hookspec
def register_metrics(register: Register) -> None:
    """Registers metrics: they compare answers with their references."""


@hookspec
def register_trackers(register: Register) -> None:
    """Registers trackers: they follow the events of a run in the parent process."""
