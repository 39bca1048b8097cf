"""What training a model takes, by a dry run: the model from its config alone, on tensors that have no data."""

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
from sftrun.training import compute
from sftrun.training.memory import floor, gaps, moments, shares, sizes
from sftrun.training.memory.live import Live
from sftrun.training.model import adapter, attention, head, vocabulary
from sftrun.training.sharding import strategies

PLANNED = "sftrun-planned"


def estimate(
    recipe: sftrun.Recipe,
    training: sftrun.types.BatchShape,
    evaluation: sftrun.types.BatchShape | None,
    quantisation: dict[str, Any] | None = None,
) -> sftrun.types.Footprint:
    """Parameters and memory of a recipe, from shapes alone; raises UserError for a model whose config is unknown.

    The forward and the backward pass of one micro-batch run on fake tensors, with the attention, the head, the
    adapter, the checkpointing and the autocast of the backend: activations are what autograd really keeps, and
    temporaries what is really alive beside them. Optimizer states follow from the optimizer's definition. Where
    processes share the model, all of it is of one of them.
    """
    libraries = floor.floor(sftrun.data.load_tokenizer(recipe.model).folder)
    where = compute.device().type
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        model = _built(recipe)
        trained = [each for each in model.parameters() if each.requires_grad]
        share = shares.of(model, recipe, quantisation, where)
        notes = list(_notes(recipe))
        logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)  # what fails is said in a note
        try:
            step, evaluated = _dry_run(model, recipe, training, evaluation, where)
        except Exception as error:  # whatever a model does that depends on data, such as choosing experts
            notes.append(f"activations by a formula, as a dry run does not work here ({type(error).__name__})")
            step, evaluated = _by_formula(model, recipe, training, evaluation)
    held = {"libraries": libraries, "weights": share.weights, "optimizer states": share.states}
    memory = moments.of(held, share, step, _temporaries(recipe, trained, where), where)
    if evaluated:
        memory["evaluation"] = {**held, "activations": evaluated, **moments.gathered(share.gathered)}
    return sftrun.types.Footprint(
        trained=sum(each.numel() for each in trained),
        frozen=sum(each.numel() for each in model.parameters() if not each.requires_grad),
        device=where,
        memory=memory,
        checkpoint=sum(map(sizes.size, trained)) + sizes.states(recipe.train.optimizer, trained),
        notes=notes,
    )


def _notes(recipe: sftrun.Recipe) -> Iterator[str]:
    if recipe.train.activation_offload:
        yield "what activation_offload moves is not taken off"
    if said := strategies.note(recipe):
        yield said


def _dry_run(
    model: Any,
    recipe: sftrun.Recipe,
    training: sftrun.types.BatchShape,
    evaluation: sftrun.types.BatchShape | None,
    where: str,
) -> tuple[dict[str, int], int]:
    with FakeTensorMode(allow_non_fake_inputs=True):
        _give_fake_tensors(model, where, _shared_dtype(recipe))
        evaluated = _evaluated(model, evaluation, where) if evaluation else 0
        return _stepped(model, recipe, training, where), evaluated


def _shared_dtype(recipe: sftrun.Recipe) -> torch.dtype | None:
    """What processes that share a model gather its weights in; None where each has them as they are."""
    return compute.DTYPES[compute.precision(recipe)] if strategies.sharing(recipe) > 1 else None


def _give_fake_tensors(model: Any, where: str, dtype: torch.dtype | None = None) -> None:
    """Puts fake tensors of a device in the place of those on meta, which attention and autocast do not know."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for name, each in module._parameters.items():
            if each is not None and id(each) not in made:
                empty = torch.empty(each.shape, dtype=dtype or each.dtype, device=where)
                made[id(each)] = torch.nn.Parameter(empty, requires_grad=each.requires_grad)
            if each is not None:
                module._parameters[name] = made[id(each)]  # weights that are shared stay so
        for name, each in module._buffers.items():
            if each is not None:
                module._buffers[name] = torch.empty(each.shape, dtype=each.dtype, device=where)


def _by_formula(
    model: Any, recipe: sftrun.Recipe, training: sftrun.types.BatchShape, evaluation: sftrun.types.BatchShape | None
) -> tuple[dict[str, int], int]:
    """Per layer and token some 16 vectors of the hidden size and 4 of the inner one, in the style of Korthikanti et al.

    (2022, Reducing Activation Recomputation in Large Transformer Models, section 4); the numbers are those of llama's
    layers without dropout, as counted by the dry run. With checkpointing one vector a layer is kept, and one whole
    layer. Logits: three copies of fp32 on each trained position, of as many as there are at once.
    """
    text = model.config.get_text_config()
    size = 4 if compute.precision(recipe) == "fp32" else 2
    inner = getattr(text, "moe_intermediate_size", 0) * getattr(text, "num_experts_per_tok", 1)
    layer = 16 * text.hidden_size + 4 * (inner or getattr(text, "intermediate_size", None) or 4 * text.hidden_size)
    layers = text.num_hidden_layers
    kept = layers * text.hidden_size + layer if recipe.train.gradient_checkpointing else layers * layer
    tokens = _tokens(training)
    at_once = training.trained if strategies.sharing(recipe) > 1 else head.at_once(text.vocab_size)
    step = {"activations": tokens * kept * size, "logits": _logits(training, text.vocab_size, at_once)}
    if not evaluation:
        return step, 0
    logits = _logits(evaluation, text.vocab_size, head.at_once(text.vocab_size))
    return step, _tokens(evaluation) * layer * size + logits


def _logits(shape: sftrun.types.BatchShape, vocabulary: int, at_once: int) -> int:
    return 3 * 4 * min(shape.trained, at_once) * vocabulary


def _tokens(shape: sftrun.types.BatchShape) -> int:
    return sum(shape.lengths) if shape.packed else max(shape.lengths) * len(shape.lengths)


def _config(recipe: sftrun.Recipe) -> Any:
    """The config of a recipe's model, with an embedding for each token; its weights are not looked for."""
    if recipe.model.name == tiny.NAME:
        return transformers.Qwen3Config(**tiny.ARCHITECTURE)
    tokenizer = sftrun.data.load_tokenizer(recipe.model)
    try:
        config = transformers.AutoConfig.from_pretrained(tokenizer.folder)
    except (OSError, ValueError) as error:
        message = f"the config of {recipe.model.name} cannot be read: {str(error).splitlines()[0]}"
        raise sftrun.UserError(sftrun.Problem(message, path=("model", "name"))) from error
    text = config.get_text_config()
    text.vocab_size = max(text.vocab_size, vocabulary.size(tokenizer))
    return config


def _built(recipe: sftrun.Recipe) -> Any:
    """The model as it is trained, on torch's meta device: with its adapter and its checkpointing, as trl sets them."""
    dtype = compute.weights_dtype(recipe)
    with torch.device("meta"):
        asked = {"attn_implementation": "eager"} if recipe.train.attention == "eager" else {}
        model = transformers.AutoModelForCausalLM.from_config(_config(recipe), dtype=dtype, **asked)
        if recipe.train.gradient_checkpointing:
            model.gradient_checkpointing_enable()
            model.enable_input_require_grads()
        wanted = adapter.config(recipe)
        if wanted:
            wanted.init_lora_weights = True  # where it starts from takes no memory in training
            model = peft.get_peft_model(model, wanted)
            adapter.in_fp32(model)
            if compute.precision(recipe) != "fp32" and not recipe.tuning.lora.dora:
                adapter.leave_to_autocast(model)
    return model


def _stepped(model: Any, recipe: sftrun.Recipe, shape: sftrun.types.BatchShape, where: str) -> dict[str, int]:
    """Bytes alive at the peak of a micro-batch's forward and backward pass: gradients, activations, logits."""
    trained = [each for each in model.train().parameters() if each.requires_grad]
    live = Live("activations", [*model.parameters(), *model.buffers()])
    shared = strategies.sharing(recipe) > 1
    for each in trained:
        each.register_post_accumulate_grad_hook(_taking(recipe, live) if shared else _keeping(live))
    with live:
        for _ in range(min(recipe.train.grad_accum, 2)):  # from the second on, there are gradients from the start
            live.phase, live.forward = "activations", True
            with _autocast(recipe, where):
                loss = _loss(model, shape, where, live, head.whole if shared else head.in_parts)
            live.forward = False
            loss.backward()
            del loss
    parts = ("activations", "logits") if shared else ("gradients", "activations", "logits")
    found = {name: live.peak[name] for name in parts}
    if where == "cpu":
        held = [sizes.states(recipe.train.optimizer, [each]) for each in trained]
        most = max(live.most, sum(map(sizes.size, trained)) if shared and _parts_stay(recipe) else 0)
        found["gaps of malloc"] = max(gaps.taken(live.trace, held) - most - sum(held), 0)
    return found


def _keeping(live: Live) -> Callable[[Any], None]:
    return lambda weight: live.belongs(weight.grad, "gradients")


def _taking(recipe: sftrun.Recipe, live: Live) -> Callable[[Any], None]:
    """Gradients do not count where they are sent to other processes as soon as they are there."""

    def sent(weight: Any) -> None:
        live.leaves(weight.grad)
        if not _parts_stay(recipe):
            weight.grad = None

    return sent


def _parts_stay(recipe: sftrun.Recipe) -> bool:
    """Whether a part of each gradient stays, with gaps in between; ZeRO has a buffer for them."""
    return recipe.launch.strategy == "fsdp"


def _autocast(recipe: sftrun.Recipe, where: str) -> Any:
    dtype = compute.DTYPES[compute.precision(recipe)]
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(where, dtype)


def _loss(model: Any, shape: sftrun.types.BatchShape, where: str, live: Live, summed: Callable[..., Any]) -> Any:
    """The loss as `_head` computes it, on trained positions; kernels that make no logits take less."""
    rows, tokens, tail, logits = _scored(model, shape, where)
    live.phase = "logits"
    if rows.requires_grad:
        rows.register_hook(lambda _: setattr(live, "phase", "activations"))
    return summed(rows, tokens, tail, logits)


def _scored(
    model: Any, shape: sftrun.types.BatchShape, where: str
) -> tuple[Any, torch.Tensor, head.Tail, torch.Tensor]:
    """The hidden states of trained positions, the tokens wanted, the head, and logits of no position."""
    inner = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    rest, hidden, tail = head.apart(inner, inner.forward, (), _given(inner.base_model, shape, where))
    at = torch.zeros(shape.trained, dtype=torch.long, device=where)
    return hidden[:, :-1][at, at], at, tail, rest.logits


def _given(backbone: Any, shape: sftrun.types.BatchShape, where: str) -> dict[str, Any]:
    """What a model is given: packed rows as one, others padded to the longest."""
    rows, width = (1, sum(shape.lengths)) if shape.packed else (len(shape.lengths), max(shape.lengths))
    given = {"input_ids": torch.zeros(rows, width, dtype=torch.long, device=where), "use_cache": False}
    if shape.packed and backbone.config._attn_implementation != "eager" and attention.isolate(backbone):
        starts = torch.zeros(len(shape.lengths) + 1, dtype=torch.int32, device=where)
        _tell(backbone, lambda **_: attention.Sequences(shape.lengths, starts, None, None))
        given["position_ids"] = torch.arange(width, device=where)[None]
    elif shape.packed or len(set(shape.lengths)) > 1:
        given["attention_mask"] = torch.ones(rows, 1, width, width, dtype=torch.bool, device=where)
    elif backbone.config._attn_implementation in ("sdpa", PLANNED):
        _tell(backbone, _unpadded)
    return given


def _tell(backbone: Any, mask: Callable[..., Any]) -> None:
    """Gives a model the backend's attention, told what its mask is: fake positions and masks cannot say it."""
    transformers.AttentionInterface.register(PLANNED, attention.attend)
    AttentionMaskInterface.register(PLANNED, mask)
    backbone.set_attn_implementation(PLANNED)


def _unpadded(**asked: Any) -> Any:
    """No mask, unless the attention's window is shorter than the rows."""
    window = asked.get("local_size")
    return None if window is None or asked["kv_length"] < window else sdpa_mask(**asked)


def _evaluated(model: Any, shape: sftrun.types.BatchShape, where: str) -> int:
    """Bytes alive at the peak of an evaluation's forward pass."""
    live = Live("activations", [*model.parameters(), *model.buffers()])
    model.eval()
    with live, torch.inference_mode():
        rows, tokens, tail, logits = _scored(model, shape, where)
        head.counted(rows, tokens, tail, head.at_once(logits.shape[-1]))
    return live.most


def _temporaries(recipe: sftrun.Recipe, trained: list[Any], where: str) -> int:
    """Of the optimizer: twice one weight after the other on a CPU, twice all of them on a GPU; of adamw none.

    DeepSpeed makes the gradients of its fp32 weights for it.
    """
    held, processes = [sizes.size(each) for each in trained], strategies.sharing(recipe)
    taken = 0
    if recipe.train.optimizer != "adamw":  # which is one kernel, without anything in between
        taken = 2 * (max(held, default=0) if where == "cpu" else sum(held))
    if processes > 1 and recipe.launch.strategy == "deepspeed":
        taken += sum(held)
    return taken // processes
