"""Merges an adapter with unsloth, and compares the outputs of both models on prepared rows."""

from pathlib import Path
from typing import Any

from sftrun_unsloth import _model  # isort: skip # imports unsloth before anything else does

import sftrun
import sftrun.data
from sftrun.training import saved
from sftrun.training.model import merge as merging

FOLDER = "unsloth-merged"


def merge(work: sftrun.kinds.Exporting, max_difference: float) -> dict[str, Any]:
    """Writes `export/unsloth-merged` and returns facts.

    Raises UserError if a log-probability of the merged model differs by more than `max_difference`.
    """
    recipe, run = work.recipe, work.run
    rows = merging.sample_rows(run)
    model = _model.load_tuned(recipe, run).eval()
    before = list(merging.outputs(model, rows))
    with sftrun.files.atomic_folder(run.export / FOLDER) as making:
        _write(model, recipe, run, making)
        merged = _model.load(str(making), recipe, merged=True).eval()
        facts = merging.compare_log_probabilities(before, merging.outputs(merged, rows))
        hint = "serve the adapter as it is, or raise max_difference after looking at the answers"
        merging.check_difference(facts, max_difference, hint)
    return {"path": f"export/{FOLDER}", **facts}


def _write(model: Any, recipe: sftrun.Recipe, run: sftrun.RunDir, folder: Path) -> None:
    try:
        with saved.savable_generation(model):
            model.save_pretrained_merged(str(folder), None, save_method="merged_16bit")
    except NotImplementedError as error:
        raise sftrun.UserError(f"unsloth cannot merge: {error}", hint="serve the adapter as it is") from error
    saved.write_generation(model, run, folder)
    sftrun.data.load_tokenizer(recipe.model).save(folder)
