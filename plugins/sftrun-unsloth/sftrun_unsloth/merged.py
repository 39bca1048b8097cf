"""Exporter `unsloth-merged`: merges the adapter into 16-bit weights with unsloth, and compares the result."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import sftrun
from sftrun_unsloth import _limits

SFTRUN_API = 1


class MergedOptions(sftrun.Options):
    """The allowed difference between the merged model and the adapter."""

    max_difference: Annotated[
        float,
        sftrun.Meta(gt=0, description="Largest difference of a log-probability, merged against adapter; more fails."),
    ] = 0.1


@sftrun.hookimpl
def register_exporters(register: sftrun.Register) -> None:
    register("unsloth-merged", UnslothMerged, options=MergedOptions)


class UnslothMerged:
    """Merges the adapter into 16-bit weights with unsloth, and compares the outputs before and after."""

    def __init__(self, options: MergedOptions) -> None:
        self.max_difference = options.max_difference

    def check_recipe(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        if recipe.tuning.mode == "full":
            message = "the exporter unsloth-merged has nothing to merge in tuning.mode full: model/ is whole already"
            yield sftrun.Problem(message, path=("exporters",), hint="leave it out, or use tuning.mode lora")
        if _limits.name_of(recipe.backend) != "unsloth":
            message = "the exporter unsloth-merged merges what the backend unsloth has trained"
            yield sftrun.Problem(message, path=("exporters",), hint="use the exporter merged")
        names = [_limits.name_of(use) for use in recipe.exporters]
        if "unsloth-merged" in names[1:]:
            message = "unsloth must be imported before what other exporters import"
            yield sftrun.Problem(message, path=("exporters",), hint="put unsloth-merged before the others")

    def check_machine(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        if recipe.tuning.mode == "qlora" and not sftrun.gpu_count():
            message = "unsloth merges into a 4-bit base on a GPU only, and there is none"
            yield sftrun.Problem(message, path=("exporters",), hint="use the exporter merged")

    def export(self, recipe: sftrun.Recipe, run: Path, emit: sftrun.kinds.Emit) -> dict[str, Any]:
        used = _limits.used(run)
        if used != "unsloth":
            raise sftrun.UserError(f"{run} was trained with {used}, not with unsloth", hint="use the exporter merged")
        from sftrun_unsloth import _merge

        return _merge.merge(recipe, run, self.max_difference)
