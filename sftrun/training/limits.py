"""What no backend on transformers' trainer can do, as far as it is seen without torch."""

from collections.abc import Iterator
from pathlib import Path

import sftrun

MODULES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "tensorboard")


def of_recipe(recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
    """Settings that would be without effect."""
    if recipe.train.dataloader_prefetch and not recipe.train.dataloader_workers:
        message = "dataloader_prefetch needs processes that load: set train.dataloader_workers too"
        yield sftrun.Problem(message, path=("train", "dataloader_prefetch"))


def of_data(recipe: sftrun.Recipe, run: Path) -> Iterator[sftrun.Problem]:
    """Options that go by the validation loss, where the prepared data have no validation rows."""
    wanted = {"early_stopping": recipe.train.early_stopping, "keep_best": recipe.train.keep_best}
    for name in [name for name, value in wanted.items() if value]:
        if not (sftrun.RunDir(run).prepared / "val.arrow").is_file():
            message = f"train.{name} goes by the validation loss, and the data have no validation rows"
            yield sftrun.Problem(message, path=("train", name), hint="give the source a val split, or a val_share")
