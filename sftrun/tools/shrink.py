"""Makes a tiny model with random weights: the architecture and the whole vocabulary of a given model."""

import shutil
from pathlib import Path
from typing import Any

from sftrun import hub
from sftrun.errors import Problem, UserError
from sftrun.recipe.model import ModelOptions

COPIED = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab*",
    "merges.txt",
)
HEADS = 4  # attention heads
HEAD = 16  # dimensions of a head
LAYERS = 2  # layers, at least
SIZES = {  # other sizes, by their keys in configs
    "intermediate_size": 128,
    "ffn_dim": 128,
    "n_inner": 128,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": HEAD,
    "qk_nope_head_dim": HEAD,
    "v_head_dim": HEAD,
    "hidden_size_per_layer_input": 16,
    "word_embed_proj_dim": HEADS * HEAD,
}


def save_tiny_model(source: Path, folder: Path, seed: int, options: ModelOptions) -> None:
    """Writes a model folder: the config of `source` made small, random weights, the same tokenizer and way to generate.

    Raises UserError if the architecture cannot be made small.
    """
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    trust = options.trust_remote_code
    if trust:
        hub.check_code(options.name, source, ("model", "trust_remote_code"))
    try:
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=trust)
        shrink_config(config)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=trust, dtype=torch.float32)
            model(input_ids=torch.zeros(1, 4, dtype=torch.long))
    except Exception as error:  # a config may have other keys that must agree with the small sizes
        if "trust_remote_code" in str(error):
            raise UserError(hub.explain_code(options.name, ("model", "name"))) from error
        message = f"the model in {source} cannot be made small: {type(error).__name__}: {str(error).splitlines()[0]}"
        hint = "name a small model of the same family: --set model.name=…"
        raise UserError(Problem(message, path=("model", "name"), hint=hint)) from error
    model.save_pretrained(folder)
    for pattern in COPIED:
        for file in source.glob(pattern):
            shutil.copyfile(file, folder / file.name)


def shrink_config(config: Any) -> None:
    """Makes a transformers config small in place: keeps sizes consistent, and the vocabulary unchanged."""
    text = config.get_text_config()
    kept = _choose_layers(text)
    layers = text.num_hidden_layers
    for key, value in vars(text).copy().items():
        if isinstance(value, list) and len(value) == layers:  # one entry a layer: its type, its window, …
            setattr(text, key, [value[index] for index in kept])
    _shrink_heads(text)
    text.num_hidden_layers = len(kept)
    text.hidden_size = HEADS * HEAD
    for key, size in SIZES.items():
        if isinstance(getattr(text, key, None), int):
            setattr(text, key, min(size, getattr(text, key)))
    _shrink_rope(text)


def _choose_layers(text: Any) -> list[int]:
    """Returns the indices of the layers to keep: one of each kind, at least LAYERS, in order."""
    count = text.num_hidden_layers
    kinds = getattr(text, "layer_types", None) or [""] * count
    firsts = {kinds.index(kind) for kind in kinds}
    others = [index for index in range(count) if index not in firsts]
    return sorted([*firsts, *others[: max(LAYERS - len(firsts), 0)]])[: max(LAYERS, len(firsts))]


def _shrink_heads(text: Any) -> None:
    """Shrinks attention heads: grouped heads stay grouped, and a single key-value head stays single."""
    heads, shared = text.num_attention_heads, getattr(text, "num_key_value_heads", None)
    text.num_attention_heads = HEADS
    if shared is not None:
        text.num_key_value_heads = HEADS if shared == heads else min(shared, HEADS // 2)
    if isinstance(getattr(text, "head_dim", None), int):
        text.head_dim = HEAD


def _shrink_rope(text: Any) -> None:
    """Cuts the RoPE factors, one for each pair of dimensions of a head, to the smaller head."""
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    for key in ("short_factor", "long_factor"):
        if isinstance(rope.get(key), list):
            rope[key] = rope[key][: HEAD // 2]
