"""Shapes of public models with random weights, rows of random text, and the FLOPs of a training."""

import random
import shutil
from pathlib import Path
from typing import Any

import _ways

RANK = 16
CASES: dict[str, dict[str, Any]] = {
    "llama-8b-lora": {
        "config": ("LlamaConfig", {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                                   "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
                                   "max_position_embeddings": 8192, "tie_word_embeddings": False}),
        "rows": 16, "length": 4096, "batch": 1, "trl_batch": 1, "full": True, "mode": "lora",
    },
    "qwen-0.5b-full": {
        "config": ("Qwen2Config", {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
                                   "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936,
                                   "max_position_embeddings": 32768, "tie_word_embeddings": True}),
        "rows": 2048, "length": 2048, "batch": 4, "trl_batch": 64, "full": False, "mode": "full",
    },
}  # fmt: skip
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 1024}  # fmt: skip


def case(name: str, small: bool) -> dict[str, Any]:
    """Returns a case in its real size, or with tiny shapes."""
    real = CASES[name]
    if not small:
        return real
    kind, sizes = real["config"]
    rows = {"rows": 4 if real["full"] else 16, "length": 256, "batch": 1, "trl_batch": 2}
    return {**real, **rows, "config": (kind, {**sizes, **SMALL})}


def random_rows(count: int, length: int, full: bool) -> list[dict[str, str]]:
    """Returns rows that fill a pack each, or rows of short-chat lengths; each letter is one token."""
    draw = random.Random(_ways.SEED)
    rows = []
    for _ in range(count):
        tokens = length - 32 if full else min(max(int(draw.lognormvariate(4.3, 0.68)), 16), length - 32)
        prompt = max(tokens // 3, 4)
        texts = ["".join(draw.choices("bcdfghjklmnpqrstvwxz", k=each)) for each in (prompt, max(tokens - prompt, 4))]
        rows.append({"prompt": texts[0], "completion": texts[1]})
    return rows


def set_up(folder: Path, name: str, small: bool, train: dict[str, Any]) -> None:
    """Writes the model's config and tokenizer, the rows and the recipe, with these keys of `train`."""
    import torch
    import transformers

    from sftrun import tiny

    about = case(name, small)
    kind, sizes = about["config"]
    sizes = {**sizes, "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": None}
    getattr(transformers, kind)(**sizes).save_pretrained(folder / "model")
    for file in tiny.TOKENIZER_FILES:
        shutil.copyfile(tiny.folder() / file, folder / "model" / file)
    precision = "bf16" if torch.cuda.is_available() else "fp32"
    keys = {
        "model": {"max_seq_len": about["length"]},
        "tuning": {"mode": about["mode"], **({"lora": {"r": RANK}} if about["mode"] == "lora" else {})},
        "packing": {"strategy": "best-fit"},
        "train": {"batch_size": about["batch"], "precision": precision, **train},
    }
    _ways.write(folder, random_rows(about["rows"], about["length"], about["full"]), keys)


def config(folder: Path) -> Any:
    """Returns the config of a case's model."""
    import transformers

    return transformers.AutoConfig.from_pretrained(folder / "model")


def build_model(folder: Path, name: str) -> Any:
    """Builds a model with random weights on its device: fp32 in full tuning, else 16 bits on a GPU."""
    import torch
    import transformers

    gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if gpu and CASES[name]["mode"] == "lora" else torch.float32
    torch.manual_seed(_ways.SEED)
    with torch.device("cuda" if gpu else "cpu"):
        return transformers.AutoModelForCausalLM.from_config(config(folder), dtype=dtype)


def flops(folder: Path, name: str) -> dict[str, float]:
    """Returns the FLOPs of a pass over the rows, with its tokens and trained tokens.

    `flop`: for each token and weight of a matrix 2 forward, 2 backward, and 2 more if the weight is trained; the head
    for trained tokens only; and 12 · layers · width · length / 2 for attention, because a causal mask leaves half
    (Chowdhery et al. 2022, PaLM, appendix B). `flop_by_parameters` is the usual estimate: 4 for each token and
    parameter, or 6 in full tuning, and nothing for attention.
    """
    import torch
    import transformers

    from sftrun.training.rows import Rows

    rows = Rows(folder / "prepared-run" / "prepared" / "train.arrow")
    trained = sum(int((rows.samples.arrays(row)[1][1:] != -100).sum()) for row in range(len(rows)))
    tokens, shape, lora = int(rows.lengths.sum()), config(folder), CASES[name]["mode"] == "lora"
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(shape)
    head = model.get_output_embeddings()
    linear = [each.weight for each in model.modules() if isinstance(each, torch.nn.Linear) and each is not head]
    adapter = RANK * sum(sum(each.shape) for each in linear) if lora else 0
    width = shape.num_attention_heads * (
        getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    )
    attention = 12 * shape.num_hidden_layers * width * float((rows.lengths.astype(float) ** 2).sum()) / 2
    each_weight = 4 if lora else 6
    matrices = sum(each.numel() for each in linear) * tokens + head.weight.numel() * trained
    everything = sum(each.numel() for each in model.parameters()) + adapter
    return {
        "flop": each_weight * matrices + 6 * adapter * tokens + attention,
        "flop_by_parameters": each_weight * everything * tokens,
        "tokens": tokens,
        "trained": trained,
    }
