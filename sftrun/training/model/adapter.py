"""Adapters of the LoRA family: attaches them to a base, keeps them in fp32, and saves them for the original base."""

import copy
import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as BY_ARCHITECTURE
from peft.utils.integrations import dequantize_module_weight
from safetensors.torch import save_file

import sftrun
import sftrun.data
from sftrun.training import base_model, compute, pretrained, ranks, weights
from sftrun.training.model import load, quantise, vocabulary

# pissa: 16 iterations make the SVD nearly exact, in seconds instead of minutes a layer.
# loftq: starts with the default, and is set once the quantised base is loaded.
INITIAL_WEIGHTS = {"default": True, "gaussian": "gaussian", "pissa": "pissa_niter_16", "olora": "olora", "loftq": True}
CHANGES_BASE = ("pissa_niter_16", "olora")
NAME = "default"
PATH = ("tuning", "lora")
MAX_LISTED = 12


def lora_config(recipe: sftrun.Recipe) -> Any:
    """Returns the peft configuration of a recipe; None in full tuning."""
    if recipe.tuning.mode == "full":
        return None
    lora = recipe.tuning.lora
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=None if lora.target_modules == "auto" else lora.target_modules,
        modules_to_save=list(lora.modules_to_save) or None,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        init_lora_weights=INITIAL_WEIGHTS[lora.init],
    )


def attach(
    base: Any, recipe: sftrun.Recipe, run: sftrun.RunDir, emit: sftrun.kinds.Emit, empty: bool = False
) -> "Adapter":
    """Attaches a new adapter to a base, which may be `empty`; raises UserError if the base lacks a module."""
    tokens = ranks.broadcast(_new_tokens(base, recipe, run))  # other ranks may have an empty model
    problems = [*unknown_modules(base, recipe), *(_embeddings_with_adapter(base, recipe) if tokens else [])]
    if problems:
        raise sftrun.UserError(problems)
    wanted = lora_config(recipe)
    if empty:
        wanted.init_lora_weights = True  # an empty model receives the initial values with the weights
    wanted.ensure_weight_tying = _has_tied_embeddings(base) and _saves_embeddings(base, recipe)
    embeddings = _embeddings_not_saved(base, recipe)
    if tokens and embeddings:
        wanted.trainable_token_indices = dict.fromkeys(embeddings, tokens)
        message = f"{recipe.model.name} has no trained embedding for {_name_tokens(recipe, tokens)}"
        emit(sftrun.events.Warned(message=f"{message}: trained, and saved, with the adapter"))
    try:
        model = peft.get_peft_model(base, wanted)
    except (ValueError, TypeError) as error:
        raise sftrun.UserError(sftrun.Problem(f"peft cannot make this adapter: {error}", path=PATH)) from error
    cast_trained_to_fp32(model)
    if compute.precision(recipe) != "fp32" and not recipe.tuning.lora.dora:
        disable_input_casts(model)
    if recipe.tuning.lora.init == "loftq":
        _loftq(model, recipe)
    return Adapter(model)


def cast_trained_to_fp32(model: Any) -> None:
    """Casts trained weights to fp32.

    peft leaves copies of a base's modules in 16 bits, in which small steps are lost and gradients cannot be scaled.
    """
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()


def disable_input_casts(model: Any) -> None:
    """Stops peft from casting the input of each adapter to fp32, which autocast would cast back to 16 bits."""
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False


class Adapter:
    """An adapter on its base, with a copy of its initial weights."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.start = weights.copy_trained(model)

    def restore(self) -> None:
        """Restores the initial weights after a trainer has changed their dtype."""
        weights.restore(self.model, self.start)

    def save(self, folder: Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Writes the adapter for the original base; `state_dict` has the weights of a sharded adapter.

        PiSSA and OLoRA subtract their start, B₀A₀, from the base's weights. The saved adapter is BA − B₀A₀ with twice
        the rank, [B, −B₀] [A; A₀], so that it fits the original base.
        """
        self.model.save_pretrained(folder, save_embedding_layers=False, state_dict=state_dict)
        settings = self.model.peft_config[NAME]
        if settings.init_lora_weights not in CHANGES_BASE:
            return
        weights = peft.get_peft_model_state_dict(self.model, state_dict, save_embedding_layers=False)
        doubled = {name: self._doubled(name, weight).detach().cpu().clone() for name, weight in weights.items()}
        save_file(doubled, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        settings = copy.deepcopy(settings)
        settings.init_lora_weights, settings.inference_mode, settings.r = True, True, 2 * settings.r
        settings.lora_alpha *= 2**0.5 if settings.use_rslora else 2  # the scale stays alpha / r, or alpha / √r
        settings.save_pretrained(folder)

    def _doubled(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        for part, sign, dimension in (("lora_A", 1, 0), ("lora_B", -1, 1)):
            if f".{part}." in name:
                start = self.start[name.replace(f".{part}.", f".{part}.{NAME}.")]
                return torch.cat([weight, sign * start.to(weight.dtype)], dimension)
        return weight


@torch.no_grad()
def _loftq(model: Any, recipe: sftrun.Recipe) -> None:
    """Initialises the adapter with the quantisation error: the best product of its rank for W − Q.

    One step of https://arxiv.org/abs/2310.08659, with a fixed Q. peft's version ignores the scale of the product, and
    needs a GPU.
    """
    exact = load.load_base(recipe, device=torch.device("cpu"))
    weights = {name: module.weight for name, module in exact.named_modules() if isinstance(module, torch.nn.Linear)}
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, peft.tuners.lora.Linear4bit):
            rounded = dequantize_module_weight(module.get_base_layer()).float()
            rank = module.r[NAME]
            error = weights[name].to(rounded.device).float() - rounded
            left, values, right = torch.svd_lowrank(error, rank + 16, niter=16)
            root = values[:rank].sqrt()
            module.lora_A[NAME].weight.copy_(root[:, None] * right[:, :rank].T)
            module.lora_B[NAME].weight.copy_(left[:, :rank] * root / module.scaling[NAME])


def _new_tokens(base: Any, recipe: sftrun.Recipe, run: sftrun.RunDir) -> list[int]:
    location, commit = base_model.location(recipe), base_model.commit(recipe)
    rows = pretrained.load_config(location, recipe.model, revision=commit).get_text_config().vocab_size
    return vocabulary.untrained_ids(base, sftrun.data.load_tokenizer(recipe.model), rows, run.prepared / "train.arrow")


def _name_tokens(recipe: sftrun.Recipe, tokens: list[int]) -> str:
    texts = sftrun.data.load_tokenizer(recipe.model).added
    listed = ", ".join(texts.get(token, str(token)) for token in tokens[:MAX_LISTED])
    return listed + (f" and {len(tokens) - MAX_LISTED} more tokens" if len(tokens) > MAX_LISTED else "")


def _embeddings(base: Any) -> list[str]:
    """Returns the names of the input and the output embeddings."""
    layers = (base.get_input_embeddings(), base.get_output_embeddings())
    return [name for name, module in base.named_modules() if module in layers]


def _saves_embeddings(base: Any, recipe: sftrun.Recipe) -> bool:
    return any(_matches(name, _embeddings(base)) for name in recipe.tuning.lora.modules_to_save)


def _embeddings_not_saved(base: Any, recipe: sftrun.Recipe) -> list[str]:
    """Returns the embeddings that are not trained in full; the input embedding stands for a tied pair."""
    if _has_tied_embeddings(base):
        both = [name for name, module in base.named_modules() if module is base.get_input_embeddings()]
        return [] if _saves_embeddings(base, recipe) else both
    saved = recipe.tuning.lora.modules_to_save
    return [name for name in _embeddings(base) if not any(_matches(each, [name]) for each in saved)]


def _embeddings_with_adapter(base: Any, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
    modules = recipe.tuning.lora.target_modules
    for index, name in enumerate(modules if isinstance(modules, list) else ()):
        if _matches(name, _embeddings(base)):
            message = f"{name} has new tokens, which are trained in full, so it cannot have an adapter as well"
            path, hint = (*PATH, "target_modules", index), f"name {name} in modules_to_save, or leave it out"
            yield sftrun.Problem(message, path=path, hint=hint)


def _has_tied_embeddings(base: Any) -> bool:
    return bool(base.get_input_embeddings().weight is base.get_output_embeddings().weight)


def _last_names(names: Iterable[str]) -> set[str]:
    return {name.rsplit(".", 1)[-1] for name in names}


def unknown_modules(base: Any, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
    """Yields problems for names in the recipe that match no module, or no suitable module."""
    lora = recipe.tuning.lora
    modules = {name: module for name, module in base.named_modules() if name}
    linear = [name for name, module in modules.items() if isinstance(module, torch.nn.Linear | torch.nn.Embedding)]
    linear += [name for name, module in modules.items() if isinstance(module, transformers.pytorch_utils.Conv1D)]
    if lora.target_modules == "auto" and base.config.model_type not in BY_ARCHITECTURE:
        message = f"peft has no choice of modules for the architecture {base.config.model_type!r}"
        yield sftrun.Problem(message, path=(*PATH, "target_modules"), hint="use all-linear, or a list of names")
    for index, name in enumerate(lora.target_modules if isinstance(lora.target_modules, list) else ()):
        path = (*PATH, "target_modules", index)
        if not _matches(name, linear):
            yield _unknown_module(name, linear, list(modules), path)
        elif _has_tied_embeddings(base) and any(
            modules[match] is base.get_input_embeddings() for match in _matches(name, linear)
        ):
            message = f"{name} is also the head in this model, and an adapter would change only one of the two"
            yield sftrun.Problem(message, path=path, hint=f"name {name} in modules_to_save, to train it in full")
    for index, name in enumerate(lora.modules_to_save):
        path = (*PATH, "modules_to_save", index)
        if not _matches(name, modules):
            yield _unknown_module(name, modules, list(modules), path)
        elif any(quantise.is_quantised(each) for match in _matches(name, modules) for each in modules[match].modules()):
            message = f"{name} is quantised by the backend, and cannot be trained in full"
            yield sftrun.Problem(message, path=path, hint="name it in target_modules, or use the backend hf")


def _matches(wanted: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name == wanted or name.endswith(f".{wanted}")]


def _unknown_module(
    wanted: str, fitting: Iterable[str], every: list[str], path: tuple[str | int, ...]
) -> sftrun.Problem:
    names = sorted(_last_names(fitting) - {str(number) for number in range(1000)})
    if _matches(wanted, every):
        message = f"{wanted} is no linear layer, so it can have no adapter"
        close = []
    else:
        message = f"the model has no module {wanted}"
        close = difflib.get_close_matches(wanted, names, n=1)
    listed = ", ".join(names[:MAX_LISTED]) + (", …" if len(names) > MAX_LISTED else "")
    hint = f"did you mean '{close[0]}'? there are: {listed}" if close else f"there are: {listed}"
    return sftrun.Problem(message, path=path, hint=hint)
