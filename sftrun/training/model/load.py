"""Loads base and tuned models with transformers."""

import warnings
from typing import Any

import torch
import transformers

import sftrun
import sftrun.data
from sftrun.training import base_model, compute, pretrained, saved
from sftrun.training.loaded import LoadedModel
from sftrun.training.model import head, quantise, vocabulary
from sftrun.training.sharding.empty import empty_model

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def load_base(
    recipe: sftrun.Recipe,
    quantisation: dict[str, Any] | None = None,
    device: torch.device | None = None,
    empty: bool = False,
    dtype: torch.dtype | None = None,
) -> Any:
    """Returns the base model, with an embedding for each token.

    By default the weights are fp32 in full tuning, else in the precision of the computation, or quantised as
    `BnbOptions` says. An `empty` model gets its weights later. Raises UserError if the model cannot be loaded.
    """
    location = base_model.location(recipe)
    dtype = dtype or compute.weights_dtype(recipe)
    device = device or compute.device()
    settings = quantise.load_settings(quantisation, compute.precision(recipe), device) if quantisation else {}
    load = empty_model if empty else pretrained.load_model
    model = load(location, recipe.model, revision=base_model.commit(recipe), dtype=dtype, **settings)
    if quantisation:
        quantise.disable_cpu_repacking(model)
    else:
        model = model.to(device)
    vocabulary.extend_embeddings(model, sftrun.data.load_tokenizer(recipe.model))
    return model


def load_tuned(recipe: sftrun.Recipe, run: sftrun.RunDir) -> Any:
    """Returns the tuned model: whole weights, or the adapter on the base that it was trained on."""
    saved.check(run)
    if not saved.has_adapter(run.model):
        dtype = compute.DTYPES[compute.precision(recipe)]
        return pretrained.load_model(run.model, recipe.model, dtype=dtype).to(compute.device())
    from peft import PeftModel

    base_model.check_adapter_base(recipe, run)
    base = load_base(recipe, base_model.read_base_facts(run).get("quantisation"))
    with warnings.catch_warnings():  # peft 0.21 uses a name that transformers 5.23 has deprecated
        warnings.simplefilter("ignore", FutureWarning)
        return PeftModel.from_pretrained(base, run.model)


def load_model(work: sftrun.kinds.Loading, quantisation: dict[str, Any] | None = None) -> LoadedModel:
    """Returns the model before or after training, for evaluators: its weights in the precision of the computation."""
    recipe, dtype = work.recipe, compute.DTYPES[compute.precision(work.recipe)]
    model = load_base(recipe, quantisation, dtype=dtype) if work.which == "base" else load_tuned(recipe, work.run)
    head.patch_forward(model)
    return LoadedModel(model, recipe, work.run, head.score)
