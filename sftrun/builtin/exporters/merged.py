"""Exporter `merged`: the adapter merged into its base, as one model folder."""

from collections.abc import Iterator
from typing import Annotated, Any

import sftrun


class MergedOptions(sftrun.Options):
    """The largest difference that the merge may make."""

    max_difference: Annotated[
        Annotated[float, sftrun.Meta(gt=0)] | None,
        sftrun.Meta(
            description="Largest allowed difference of a log-probability between merged model and adapter; a larger "
            "one is an error. null allows for rounding: 0.001 in fp32, 0.5 in 16 bits."
        ),
    ] = None


@sftrun.hookimpl
def register_exporters(register: sftrun.Register) -> None:
    register("merged", Merged, options=MergedOptions)


class Merged:
    """The adapter merged into its base (dequantised from 4 or 8 bits), and compared with the adapter."""

    def __init__(self, options: MergedOptions) -> None:
        self.max_difference = options.max_difference

    def check_recipe(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        if recipe.tuning.mode == "full":
            message = "the exporter merged has nothing to merge in tuning.mode full: model/ is whole already"
            yield sftrun.Problem(message, path=("exporters",), hint="leave it out, or use tuning.mode lora")

    def export(self, work: sftrun.kinds.Exporting) -> dict[str, Any]:
        from sftrun.training.model import merge

        return merge.merge(work.recipe, work.run, self.max_difference)
