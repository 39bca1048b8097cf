"""Exporter `unsloth-merged`: the adapter merged into 16-bit weights by unsloth, and compared with the adapter."""

from collections.abc import Iterator
from typing import Annotated, Any

import sftrun
from sftrun_unsloth import _limits

SFTRUN_API = 1
NAME = "unsloth-merged"


class MergedOptions(sftrun.Options):
    """The difference that the merge may make."""

    max_difference: Annotated[
        float,
        sftrun.Meta(
            gt=0, description="Largest allowed difference of a log-probability between merged model and adapter."
        ),
    ] = 0.1


@sftrun.hookimpl
def register_exporters(register: sftrun.Register) -> None:
    register(NAME, UnslothMerged, options=MergedOptions)


class UnslothMerged:
    """The adapter merged into 16-bit weights by unsloth, and compared with the adapter."""

    def __init__(self, options: MergedOptions) -> None:
        self.max_difference = options.max_difference

    def check_recipe(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        if recipe.tuning.mode == "full":
            message = f"the exporter {NAME} has nothing to merge in tuning.mode full: model/ is whole already"
            yield sftrun.Problem(message, path=("exporters",), hint="leave it out, or use tuning.mode lora")
        if recipe.backend.use != "unsloth":
            message = f"the exporter {NAME} merges what the backend unsloth has trained"
            yield sftrun.Problem(message, path=("exporters",), hint="use the exporter merged")
        if NAME in [exporter.use for exporter in recipe.exporters[1:]]:
            message = "unsloth must be imported before what other exporters import"
            yield sftrun.Problem(message, path=("exporters",), hint=f"put {NAME} before the others")

    def check_machine(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        if recipe.tuning.mode == "qlora" and not sftrun.gpu_count():
            message = "unsloth merges into a 4-bit base on a GPU only, and there is none"
            yield sftrun.Problem(message, path=("exporters",), hint="use the exporter merged")

    def export(self, work: sftrun.kinds.Exporting) -> dict[str, Any]:
        trained_with = _limits.trained_with(work.run)
        if trained_with != "unsloth":
            message = f"{work.run.path} was trained with {trained_with}, not with unsloth"
            raise sftrun.UserError(message, hint="use the exporter merged")
        from sftrun_unsloth import _merge

        return _merge.merge(work, self.max_difference)
