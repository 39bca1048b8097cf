"""The folder `model/` that training leaves: weights or adapter, tokenizer and template, written atomically."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sftrun
import sftrun.data
from sftrun.training import base_model, checkpoints


def save(
    model: Any,
    write: Callable[[Path], None],
    recipe: sftrun.Recipe,
    run: sftrun.RunDir,
    quantisation: dict[str, Any] | None = None,
) -> None:
    """Writes `model/` atomically: the weights by `write`, the tokenizer, and for an adapter the facts of its base.

    `quantisation` has the base's quantisation as options of the backend bnb; the exporter merged reads it. Raises
    UserError if the disk is full.
    """
    model.generation_config.eos_token_id = stop_ids(run, model) or None
    with checkpoints.disk_errors("the model", run.checkpoints), sftrun.files.atomic_folder(run.model) as making:
        write(making)
        sftrun.data.load_tokenizer(recipe.model).save(making)
        if has_adapter(making):
            facts = base_model.base_facts(recipe, quantisation)
            (making / "base.json").write_text(json.dumps(facts, indent=2) + "\n")


def has_adapter(folder: Path) -> bool:
    """Returns True if a folder holds an adapter, not a whole model."""
    return (folder / "adapter_config.json").is_file()


def check(run: sftrun.RunDir) -> None:
    """Raises UserError if a run has no trained model."""
    if not run.model.is_dir():
        raise sftrun.UserError(f"{run.path} has no trained model", hint="run its recipe first")


def stop_ids(run: sftrun.RunDir, model: Any) -> list[int]:
    """Returns the ids of the stop tokens: the template's end-of-turn tokens and the model's own EOS tokens."""
    own = model.generation_config.eos_token_id
    ids_of_model = {own} if isinstance(own, int) else set(own or ())
    return sorted(ids_of_model | set(run.read_json("prepared/proof.json").get("stop_ids", ())))


def count(model: Any) -> dict[str, int]:
    """Returns the number of trained parameters and of all parameters, also if ranks share the model."""
    sizes = [(getattr(weight, "ds_numel", weight.numel()), weight.requires_grad) for weight in model.parameters()]
    return {"trained": sum(size for size, trained in sizes if trained), "all": sum(size for size, _ in sizes)}
