"""Estimates the memory of a training by a dry run: the model from its config alone, on tensors without data."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import peft
import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

import sftrun
import sftrun.data
from sftrun import tiny
from sftrun.training import compute, pretrained
from sftrun.training.memory import floor, shares, sizes
from sftrun.training.memory.tracker import MemoryTracker
from sftrun.training.model import adapter, attention, head, vocabulary
from sftrun.training.sharding import strategies
from sftrun.types import BatchShape

PLANNED = "sftrun-planned"
# share of activations and logits that malloc adds on a CPU, as gaps between blocks; fitted to the cases of docs/plan.md
FRAGMENTATION = 0.4


def estimate(
    recipe: sftrun.Recipe,
    training: BatchShape,
    evaluation: BatchShape | None,
    quantisation: dict[str, Any] | None = None,
) -> sftrun.types.Footprint:
    """Returns the parameters and the memory of a recipe; raises UserError if the model's config cannot be read.

    The forward and the backward pass of one micro-batch run on fake tensors, with the attention, the head, the
    adapter, the checkpointing and the autocast of the backend; the activations are the largest number of bytes alive
    at once. Loading takes no more: weights are read through memory-mapped files. If processes share the model, the
    memory is for one process.
    """
    libraries = floor.library_bytes(recipe.model)
    device = compute.device().type
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        model = _build(recipe)
        trained = [each for each in model.parameters() if each.requires_grad]
        share = shares.share(model, recipe, quantisation, device)
        notes = list(_notes(recipe))
        logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)  # a note names the failure
        try:
            step, evaluated = _dry_run(model, recipe, training, evaluation, device)
        except Exception as error:  # a model may depend on data, such as by choosing experts
            notes.append(f"activations by a formula, as a dry run does not work here ({type(error).__name__})")
            step, evaluated = _by_formula(model, recipe, training, evaluation)
    constant = {"libraries": libraries, "weights": share.weights, "optimizer states": share.states}
    gathered = {"gathered": share.gathered} if share.gathered else {}
    gradients = {"gradients": share.gradients}
    memory = {
        "forward and backward": {**constant, **gradients, **step, **gathered},
        "optimizer step": {**constant, **gradients},
    }
    if device == "cpu":
        memory["forward and backward"]["fragmentation"] = int(FRAGMENTATION * (step["activations"] + step["logits"]))
    if evaluated:
        memory["evaluation"] = {**constant, "activations": evaluated, **gathered}
    return sftrun.types.Footprint(
        trained=sum(each.numel() for each in trained),
        frozen=sum(each.numel() for each in model.parameters() if not each.requires_grad),
        device=device,
        memory=memory,
        checkpoint=sum(map(sizes.tensor_bytes, trained)) + sizes.state_bytes(recipe.train.optimizer, trained),
        notes=notes,
    )


def _notes(recipe: sftrun.Recipe) -> Iterator[str]:
    if recipe.train.activation_offload:
        yield "memory that activation_offload moves off the GPU is still counted"
    if note := strategies.estimate_note(recipe):
        yield note


def _dry_run(
    model: Any,
    recipe: sftrun.Recipe,
    training: BatchShape,
    evaluation: BatchShape | None,
    device: str,
) -> tuple[dict[str, int], int]:
    with FakeTensorMode(allow_non_fake_inputs=True):
        _use_fake_tensors(model, device, _gathered_dtype(recipe))
        evaluated = _evaluation_bytes(model, evaluation, device) if evaluation else 0
        return _step_bytes(model, recipe, training, device), evaluated


def _gathered_dtype(recipe: sftrun.Recipe) -> torch.dtype | None:
    """Returns the dtype in which processes gather shared weights; None if each process has the whole model."""
    return compute.DTYPES[compute.precision(recipe)] if strategies.sharing_processes(recipe) > 1 else None


def _use_fake_tensors(model: Any, device: str, dtype: torch.dtype | None = None) -> None:
    """Replaces the tensors on meta, which attention and autocast do not support, by fake tensors of a device."""
    replaced: dict[int, Any] = {}
    for module in model.modules():
        for name, each in module._parameters.items():
            if each is not None and id(each) not in replaced:
                empty = torch.empty(each.shape, dtype=dtype or each.dtype, device=device)
                replaced[id(each)] = torch.nn.Parameter(empty, requires_grad=each.requires_grad)
            if each is not None:
                module._parameters[name] = replaced[id(each)]  # tied weights stay tied
        for name, each in module._buffers.items():
            if each is not None:
                module._buffers[name] = torch.empty(each.shape, dtype=each.dtype, device=device)


def _by_formula(
    model: Any, recipe: sftrun.Recipe, training: BatchShape, evaluation: BatchShape | None
) -> tuple[dict[str, int], int]:
    """Returns the bytes of a step and of an evaluation, by a formula in the style of Korthikanti et al.

    (2022, Reducing Activation Recomputation in Large Transformer Models, section 4). Each layer keeps 16 vectors of
    the hidden size and 4 of the inner size per token: the dry run's count for llama without dropout. With
    checkpointing, each layer keeps one vector, and one layer is complete. Logits are three fp32 copies of each trained
    position, for the positions of one part of the head.
    """
    text = model.config.get_text_config()
    size = 4 if compute.precision(recipe) == "fp32" else 2
    inner = getattr(text, "moe_intermediate_size", 0) * getattr(text, "num_experts_per_tok", 1)
    layer = 16 * text.hidden_size + 4 * (inner or getattr(text, "intermediate_size", None) or 4 * text.hidden_size)
    layers = text.num_hidden_layers
    kept = layers * text.hidden_size + layer if recipe.train.gradient_checkpointing else layers * layer
    tokens = _token_count(training)
    at_once = training.trained if strategies.sharing_processes(recipe) > 1 else head.positions_per_part(text.vocab_size)
    step = {"activations": tokens * kept * size, "logits": _logits(training, text.vocab_size, at_once)}
    if not evaluation:
        return step, 0
    logits = _logits(evaluation, text.vocab_size, head.positions_per_part(text.vocab_size))
    return step, _token_count(evaluation) * layer * size + logits


def _logits(shape: BatchShape, vocabulary: int, at_once: int) -> int:
    return 3 * 4 * min(shape.trained, at_once) * vocabulary


def _token_count(shape: BatchShape) -> int:
    return sum(shape.lengths) if shape.packed else max(shape.lengths) * len(shape.lengths)


def _config(recipe: sftrun.Recipe) -> Any:
    """Returns the config of a recipe's model, with an embedding for each token; the weights need not exist."""
    if recipe.model.name == tiny.NAME:
        return transformers.Qwen3Config(**tiny.ARCHITECTURE)
    tokenizer = sftrun.data.load_tokenizer(recipe.model)
    config = pretrained.load_config(tokenizer.folder, recipe.model)
    text = config.get_text_config()
    text.vocab_size = max(text.vocab_size, vocabulary.id_count(tokenizer))
    return config


def _build(recipe: sftrun.Recipe) -> Any:
    """Builds the model on torch's meta device, with its adapter and its checkpointing, as trl sets them."""
    dtype = compute.weights_dtype(recipe)
    with torch.device("meta"):
        eager = {"attn_implementation": "eager"} if recipe.train.attention == "eager" else {}
        model = pretrained.build_model(_config(recipe), recipe.model, dtype=dtype, **eager)
        if recipe.train.gradient_checkpointing:
            model.gradient_checkpointing_enable()
            model.enable_input_require_grads()
        wanted = adapter.lora_config(recipe)
        if wanted:
            wanted.init_lora_weights = True  # its initial values take no memory in training
            model = peft.get_peft_model(model, wanted)
            adapter.cast_trained_to_fp32(model)
            if compute.precision(recipe) != "fp32" and not recipe.tuning.lora.dora:
                adapter.disable_input_casts(model)
    return model


def _step_bytes(model: Any, recipe: sftrun.Recipe, shape: BatchShape, device: str) -> dict[str, int]:
    """Returns the bytes alive at the peak of a micro-batch's forward and backward pass, by part.

    Gradients of a shared model do not count here: each process keeps its share, and sends the rest away at once.
    """
    trained = [each for each in model.train().parameters() if each.requires_grad]
    tracker = MemoryTracker("activations", [*model.parameters(), *model.buffers()])
    shared = strategies.sharing_processes(recipe) > 1
    for each in trained:
        each.register_post_accumulate_grad_hook(_drop_gradient if shared else _count_gradient(tracker))
    with tracker:
        for _ in range(min(recipe.train.grad_accum, 2)):  # the second micro-batch starts with gradients
            tracker.phase = "activations"
            with _autocast(recipe, device):
                loss = _loss(model, shape, device, tracker, head.loss_at_once if shared else head.loss_in_parts)
            loss.backward()
            del loss
    step = {name: tracker.peak[name] for name in ("activations", "logits")}
    return step if shared else {"gradients": tracker.peak["gradients"], **step}


def _count_gradient(tracker: MemoryTracker) -> Callable[[Any], None]:
    return lambda weight: tracker.move(weight.grad, "gradients")


def _drop_gradient(weight: Any) -> None:
    weight.grad = None


def _autocast(recipe: sftrun.Recipe, device: str) -> Any:
    dtype = compute.DTYPES[compute.precision(recipe)]
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device, dtype)


def _loss(model: Any, shape: BatchShape, device: str, tracker: MemoryTracker, loss: Callable[..., Any]) -> Any:
    """Returns the loss of trained positions, as `model/head.py` computes it; kernels without logits take less."""
    rows, tokens, tail, logits = _score(model, shape, device)
    tracker.phase = "logits"
    if rows.requires_grad:
        rows.register_hook(lambda _: setattr(tracker, "phase", "activations"))
    return loss(rows, tokens, tail, logits)


def _score(model: Any, shape: BatchShape, device: str) -> tuple[Any, torch.Tensor, head.Tail, torch.Tensor]:
    """Returns the hidden states of trained positions, their target tokens, the head, and logits of no position."""
    inner = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    rest, hidden, tail = head.split_head(inner, inner.forward, (), _inputs(inner.base_model, shape, device))
    at = torch.zeros(shape.trained, dtype=torch.long, device=device)
    return hidden[:, :-1][at, at], at, tail, rest.logits


def _inputs(backbone: Any, shape: BatchShape, device: str) -> dict[str, Any]:
    """Returns the inputs of a model: packed rows as one row, others padded to the longest."""
    rows, width = (1, sum(shape.lengths)) if shape.packed else (len(shape.lengths), max(shape.lengths))
    inputs = {"input_ids": torch.zeros(rows, width, dtype=torch.long, device=device), "use_cache": False}
    if shape.packed and backbone.config._attn_implementation != "eager" and attention.isolate(backbone):
        starts = torch.zeros(len(shape.lengths) + 1, dtype=torch.int32, device=device)
        _set_mask(backbone, lambda **_: attention.Sequences(shape.lengths, starts, None, None))
        inputs["position_ids"] = torch.arange(width, device=device)[None]
    elif shape.packed or len(set(shape.lengths)) > 1:
        inputs["attention_mask"] = torch.ones(rows, 1, width, width, dtype=torch.bool, device=device)
    elif backbone.config._attn_implementation in ("sdpa", PLANNED):
        _set_mask(backbone, _unpadded_mask)
    return inputs


def _set_mask(backbone: Any, mask: Callable[..., Any]) -> None:
    """Sets the backend's attention with a fixed mask, which cannot be derived from fake positions."""
    transformers.AttentionInterface.register(PLANNED, attention.attend)
    AttentionMaskInterface.register(PLANNED, mask)
    backbone.set_attn_implementation(PLANNED)


def _unpadded_mask(**request: Any) -> Any:
    """Returns no mask, unless the attention's window is shorter than the rows."""
    window = request.get("local_size")
    return None if window is None or request["kv_length"] < window else sdpa_mask(**request)


def _evaluation_bytes(model: Any, shape: BatchShape, device: str) -> int:
    """Returns the bytes alive at the peak of an evaluation's forward pass."""
    tracker = MemoryTracker("activations", [*model.parameters(), *model.buffers()])
    model.eval()
    with tracker, torch.inference_mode():
        rows, tokens, tail, logits = _score(model, shape, device)
        head.loss_and_correct(rows, tokens, tail, head.positions_per_part(logits.shape[-1]))
    return tracker.most
