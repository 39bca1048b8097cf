"""Loads models with unsloth, and scores batches with them."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

from sftrun_unsloth._first import FastLanguageModel  # isort: skip

import torch
import transformers

import sftrun
import sftrun.data
from sftrun.training import base_model, compute, saved
from sftrun.training.loaded import LoadedModel

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def load_base(recipe: sftrun.Recipe) -> Any:
    """Returns the base model: fp32 weights if trained in full, else 4 bits or the precision of the computation.

    Raises UserError if it cannot be loaded, or if unsloth has loaded something else.
    """
    location = base_model.location(recipe)
    if Path(location).is_dir():
        return load(location, recipe)
    return load(location, recipe, revision=base_model.commit(recipe))


def load(location: str, recipe: sftrun.Recipe, merged: bool = False, **also: Any) -> Any:
    """Returns the model in a folder or on the Hub, an adapter on its base too, with unsloth's patches."""
    full, four_bit = recipe.tuning.mode == "full", recipe.tuning.mode == "qlora" and not merged
    try:
        model, tokens = FastLanguageModel.from_pretrained(
            location,
            max_seq_length=recipe.model.max_seq_len,
            dtype=compute.weights_dtype(recipe),
            load_in_4bit=four_bit,
            trust_remote_code=recipe.model.trust_remote_code,
            full_finetuning=full,
            use_gradient_checkpointing=checkpointing(recipe),
            use_exact_model_name=True,  # else unsloth may load weights of another repository
            random_state=recipe.seed,
            **also,
        )
    except (OSError, ValueError, NotImplementedError) as error:
        message = f"unsloth cannot load the model {location}: {str(error).splitlines()[0]}"
        raise sftrun.UserError(sftrun.Problem(message, path=("model", "name"))) from error
    _check_loaded(model, tokens, recipe, four_bit)
    return model


def quantisation(recipe: sftrun.Recipe) -> dict[str, Any] | None:
    """Returns how unsloth quantises a 4-bit base, as options of the backend bnb: the exporter merged reads them."""
    if recipe.tuning.mode != "qlora":
        return None
    return {"bits": 4, "type": "nf4", "double_quant": True, "compute_dtype": "auto", "storage_dtype": "uint8"}


def checkpointing(recipe: sftrun.Recipe) -> "Literal['unsloth', False]":
    """Returns unsloth's own kind of gradient checkpointing, which keeps activations in main memory, or False."""
    return "unsloth" if recipe.train.gradient_checkpointing else False


def _check_loaded(model: Any, tokens: Any, recipe: sftrun.Recipe, four_bit: bool) -> None:
    """Raises UserError if unsloth has silently loaded something else than it was asked for."""
    if four_bit != any(type(module).__name__ == "Linear4bit" for module in model.modules()):
        have = ("in 4 bits", "in 16 or 32 bits")[four_bit]
        message = f"unsloth has loaded {recipe.model.name} {have}, not as asked; bitsandbytes' 4 bits may not work here"
        raise sftrun.UserError(sftrun.Problem(message, path=("tuning", "mode")))
    ids, rows = sftrun.data.load_tokenizer(recipe.model).added, model.get_input_embeddings().weight.shape[0]
    if max(ids, default=0) >= rows:
        message = f"the tokenizer of {recipe.model.name} has more tokens than its model has embeddings ({rows})"
        raise sftrun.UserError(
            sftrun.Problem(message, path=("model", "name"), hint="use the backend hf, which adds them")
        )
    longest = min(tokens.model_max_length, getattr(model, "max_seq_length", None) or tokens.model_max_length)
    if longest < recipe.model.max_seq_len:
        message = f"{recipe.model.name} has {longest} positions, fewer than max_seq_len {recipe.model.max_seq_len}"
        raise sftrun.UserError(sftrun.Problem(message, path=("model", "max_seq_len"), hint=f"set it to {longest}"))


def load_tuned(recipe: sftrun.Recipe, run: sftrun.RunDir) -> Any:
    """Returns the tuned model: whole weights, or the adapter on the base that it was trained on."""
    saved.check(run)
    if not saved.has_adapter(run.model):
        return load(str(run.model), recipe)
    base_model.check_adapter_base(recipe, run)
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(run.model, Path(folder) / "adapter")
        config = json.loads((copy / "adapter_config.json").read_text("utf-8"))
        # unsloth loads the base named in this file, which may have moved
        config |= {"base_model_name_or_path": base_model.location(recipe)}
        (copy / "adapter_config.json").write_text(json.dumps(config), "utf-8")
        return load(str(copy), recipe)


def loaded(work: sftrun.kinds.Loading) -> LoadedModel:
    """Returns the model before or after training, in unsloth's mode for inference."""
    model = load_base(work.recipe) if work.which == "base" else load_tuned(work.recipe, work.run)
    return LoadedModel(FastLanguageModel.for_inference(model), work.recipe, work.run, score)


def score(model: Any, batch: dict[str, torch.Tensor]) -> tuple[float, int]:
    """Returns the summed negative log-likelihood of a batch's labels, and how many were argmax."""
    picked, wanted = scored(model, batch)
    loss = torch.nn.functional.cross_entropy(picked, wanted, reduction="sum")
    return loss.item(), int((picked.argmax(-1) == wanted).sum())


def scored(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns logits ([trained tokens, vocabulary]) and ids of the trained tokens; `t - 1` has the logits of `t`."""
    wanted = batch["labels"][:, 1:]
    trained = wanted != sftrun.data.IGNORED
    outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    return outputs.logits[:, :-1][trained].float(), wanted[trained]
