"""The folder `model/` that training leaves: weights or adapter, tokenizer and template, written atomically."""

import contextlib
import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

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
    with checkpoints.disk_errors("the model", run.checkpoints), sftrun.files.atomic_folder(run.model) as making:
        with savable_generation(model):
            write(making)
        if not has_adapter(making):
            write_generation(model, run, making)
        sftrun.data.load_tokenizer(recipe.model).save(making)
        if has_adapter(making):
            _sort_names(making / "adapter_config.json")
            facts = base_model.base_facts(recipe, quantisation)
            (making / "base.json").write_text(json.dumps(facts, indent=2) + "\n")


def write_in_base_dtype(
    model: Any, work: sftrun.kinds.Training, folder: Path, state_dict: dict[str, torch.Tensor] | None = None
) -> None:
    """Writes a fully tuned model in the dtype of its base; training keeps its weights in fp32.

    `state_dict` has the weights of a sharded model. If one is too large for the dtype, all stay in fp32; it is said.
    """
    dtype = getattr(torch, base_model.weights_dtype(work.recipe))
    weights = model.state_dict() if state_dict is None else state_dict
    cast = _cast(weights, dtype)
    if not all(bool(each.isfinite().all()) for each in cast.values() if each.is_floating_point()):
        said = f"some weights are too large for {dtype}, the dtype of the base: model/ has fp32, and needs more memory"
        work.emit(sftrun.events.Warned(message=said.replace("torch.", "")))
        dtype, cast = torch.float32, weights
    model.save_pretrained(folder, state_dict=cast)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def _cast(weights: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Returns fp32 weights in another dtype; tied weights stay one tensor, so that they are saved once."""
    done: dict[tuple[int, torch.Size], torch.Tensor] = {}
    for each in weights.values():
        if each.dtype == torch.float32 and (each.data_ptr(), each.shape) not in done:
            done[each.data_ptr(), each.shape] = each.to(dtype)
    return {name: done.get((each.data_ptr(), each.shape), each) for name, each in weights.items()}


@contextlib.contextmanager
def savable_generation(model: Any) -> Iterator[None]:
    """Replaces a model's generation config by an empty one while the model is saved.

    transformers refuses to save a changed config with settings that have no effect, such as a temperature without
    sampling, and the bases that come with such a config could not be trained.
    """
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own, owner.generation_config = owner.generation_config, transformers.GenerationConfig()
    try:
        yield
    finally:
        owner.generation_config = own


def write_generation(model: Any, run: sftrun.RunDir, folder: Path) -> None:
    """Writes `generation_config.json`: the settings of the base, all of them, and the stop tokens of the run."""
    settings = copy.deepcopy(model.generation_config)
    settings.eos_token_id = stop_ids(run, model) or None
    settings.to_json_file(folder / "generation_config.json", use_diff=True)


def has_adapter(folder: Path) -> bool:
    """Returns True if a folder holds an adapter, not a whole model."""
    return (folder / "adapter_config.json").is_file()


def _sort_names(file: Path) -> None:
    """Sorts the names of modules in an adapter's config: peft keeps sets, with another order in each process."""
    config = json.loads(file.read_text("utf-8"))
    for key in ("target_modules", "exclude_modules", "modules_to_save"):
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    file.write_text(json.dumps(config, indent=2, sort_keys=True), "utf-8")


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
