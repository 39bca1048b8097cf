"""Training on one GPU: tokens a second, TFLOP/s, MFU and peak memory of sftrun, beside trl as it comes.

    python benchmarks/gpu.py [--case NAME] [--rounds N] [--out FILE] [--peak TFLOPS] [--small]

Cases: `llama-8b-lora`, the shape of Llama 3 8B with LoRA (r 16, all linear layers) in bf16 on rows that fill packs of
4,096 tokens; and `qwen-0.5b-full`, the shape of Qwen2.5 0.5B, every weight trained, on rows with the lengths of short
chats, packed. Weights are random, text is made up and read by the embedded tokenizer: nothing is downloaded. Ways, in
turn and each in a process of its own: `sftrun`; `trl`, SFTTrainer with its own defaults (checkpointing, padding, no
packing) at the same rows a step; `trl-plain`, the same without checkpointing; and `unsloth`, where it and
sftrun-unsloth are installed, through sftrun (its model is written to disk first). Rows are seen twice, and the second
pass is measured. `--small` is the same with tiny shapes, for a CPU too.

FLOPs are those that the training needs, whatever a way computes besides (padding, activations again): for each token
2 for each weight of a matrix forward, 2 backward, and 2 more where the weight is trained; the head for trained tokens
alone; and 12 · layers · width · length / 2 for attention, of which a causal mask leaves half (Chowdhery et al. 2022,
PaLM, appendix B). MFU is FLOP/s over the dense bf16 peak of the GPU's data sheet.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import _ways

PEAKS = {"H100 PCIe": 756, "H100": 989, "H200": 989, "A100": 312, "L40S": 362, "L4": 121, "RTX 4090": 165}
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
    """A case, in its size or in small."""
    found = CASES[name]
    if not small:
        return found
    kind, config = found["config"]
    rows = {"rows": 4 if found["full"] else 16, "length": 256, "batch": 1, "trl_batch": 2}
    return {**found, **rows, "config": (kind, {**config, **SMALL})}


def made_up(count: int, length: int, full: bool) -> list[dict[str, str]]:
    """Rows that fill a pack each, or with the lengths of short chats; a letter is a token of the embedded tokenizer."""
    draw = random.Random(_ways.SEED)
    found = []
    for _ in range(count):
        tokens = length - 32 if full else min(max(int(draw.lognormvariate(4.3, 0.68)), 16), length - 32)
        asked = max(tokens // 3, 4)
        texts = ["".join(draw.choices("bcdfghjklmnpqrstvwxz", k=each)) for each in (asked, max(tokens - asked, 4))]
        found.append({"prompt": texts[0], "completion": texts[1]})
    return found


def config(folder: Path) -> Any:
    """The shape of a case's model."""
    import transformers

    return transformers.AutoConfig.from_pretrained(folder / "model")


def built(folder: Path, dtype: Any) -> Any:
    """A model with random weights, made where it is trained."""
    import torch
    import transformers

    torch.manual_seed(_ways.SEED)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return transformers.AutoModelForCausalLM.from_config(config(folder), dtype=dtype)


def set_up(folder: Path, name: str, small: bool) -> None:
    """The model's shape and tokenizer, the rows and the recipe."""
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
        "tuning": {"mode": about["mode"]},
        "packing": {"strategy": "best-fit"},
        "train": {"batch_size": about["batch"], "precision": precision},
    }
    _ways.write(folder, made_up(about["rows"], about["length"], about["full"]), keys)


def sftrun(folder: Path, name: str) -> dict[str, Any]:
    """sftrun's worker; its base is made in place, and not read from a disk."""
    import torch

    from sftrun.builtin.backends import _hf_model

    dtype = torch.float32 if CASES[name]["mode"] == "full" else _half()
    _hf_model.load_base = lambda *_, **__: built(folder, dtype)
    return _ways.sftrun(folder)


def unsloth(folder: Path, name: str) -> dict[str, Any]:
    """The same recipe with the backend unsloth, which pads."""
    import torch

    built(folder, _half() if CASES[name]["mode"] == "lora" else torch.float32).save_pretrained(folder / "model")
    torch.cuda.empty_cache()
    recipe = json.loads((folder / "recipe.yaml").read_text())
    recipe["packing"], recipe["backend"] = {"strategy": "none"}, "unsloth"
    recipe["train"]["batch_size"] = CASES[name]["trl_batch"]
    other = folder / "unsloth"
    shutil.rmtree(other, ignore_errors=True)
    other.mkdir()
    (other / "recipe.yaml").write_text(json.dumps(recipe))
    shutil.copytree(folder / "prepared-run", other / "prepared-run")
    return _ways.sftrun(other)


def trl(folder: Path, name: str, checkpointing: bool, batch: int) -> dict[str, Any]:
    """trl's trainer at the same rows a step."""
    import peft
    import torch

    gpu, lora = torch.cuda.is_available(), CASES[name]["mode"] == "lora"
    model = built(folder, _half() if lora else torch.float32)
    if lora:
        adapter = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
        model = peft.get_peft_model(model, peft.LoraConfig(**adapter))
    return _ways.trl(
        folder, model, bf16=gpu, gradient_checkpointing=checkpointing, per_device_train_batch_size=batch,
        learning_rate=2e-4 if lora else 1e-5,
    )  # fmt: skip


def _half() -> Any:
    import torch

    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def one(way: str, folder: Path, name: str, batch: int) -> dict[str, Any]:
    """A way in this process: what it took, and its peak memory on the device."""
    import torch

    ways = {
        "sftrun": lambda: sftrun(folder, name),
        "trl": lambda: trl(folder, name, True, batch),
        "trl-plain": lambda: trl(folder, name, False, batch),
        "unsloth": lambda: unsloth(folder, name),
    }
    found = _ways.measured(ways[way])
    if torch.cuda.is_available():
        found |= {"gpu_mb": torch.cuda.max_memory_allocated() // 2**20, "device": torch.cuda.get_device_name()}
    return found


def flops(folder: Path, name: str) -> dict[str, float]:
    """What a pass over the rows needs, with its tokens and trained tokens."""
    import torch

    from sftrun.training.rows import Rows

    rows = Rows(folder / "prepared-run" / "prepared" / "train.arrow")
    trained = sum(int((rows.read(row)[1][1:] != -100).sum()) for row in range(len(rows)))
    tokens, shape = int(rows.lengths.sum()), config(folder)
    with torch.device("meta"):
        model = built_on_meta(shape)
    head = model.get_output_embeddings()
    matrices = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head)
    lora = CASES[name]["mode"] == "lora"
    adapter = sum(16 * sum(m.weight.shape) for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head)
    per_weight = 4 if lora else 6
    width = shape.num_attention_heads * getattr(shape, "head_dim", shape.hidden_size // shape.num_attention_heads)
    attention = 12 * shape.num_hidden_layers * width * float((rows.lengths.astype(float) ** 2).sum()) / 2
    needed = per_weight * (matrices * tokens + head.weight.numel() * trained) + attention
    return {"flop": needed + (6 * adapter * tokens if lora else 0), "tokens": tokens, "trained": trained}


def built_on_meta(shape: Any) -> Any:
    """The modules of a model, without weights."""
    import transformers

    return transformers.AutoModelForCausalLM.from_config(shape)


def rates(found: dict[str, Any], needed: dict[str, float], peak: float | None) -> dict[str, Any]:
    """Tokens, trained tokens and TFLOP a second, MFU and memory of a way."""
    per_second = {key: needed[key] / found["seconds"] for key in ("tokens", "trained", "flop")}
    result = {"tokens_per_s": round(per_second["tokens"]), "trained_per_s": round(per_second["trained"])}
    result |= {"tflops": round(per_second["flop"] / 1e12, 3), "gpu_mb": found.get("gpu_mb")}
    return {**result, "mfu": round(per_second["flop"] / 1e12 / peak, 3) if peak else None}


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """All ways of a case, round by round."""
    ways = ["sftrun", "trl", "trl-plain"] + ["unsloth"] * bool(find_spec("unsloth") and find_spec("sftrun_unsloth"))
    about = case(name, args.small)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        os.environ["SFTRUN_CACHE"] = str(folder / "cache")
        set_up(folder, name, args.small)
        needed = flops(folder, name)
        more = ("--case", name, "--trl-batch", str(about["trl_batch"]))
        rounds = [{way: _ways.apart(__file__, way, folder, *more) for way in ways} for _ in range(args.rounds)]
    device = rounds[0]["sftrun"].get("device", "CPU")
    peak = args.peak or next((value for key, value in PEAKS.items() if key in device), None)
    told = [{way: rates(found, needed, peak) for way, found in each.items()} for each in rounds]
    middle = {
        way: {key: statistics.median(each[way][key] or 0 for each in told) for key in told[0][way]} for way in ways
    }
    over = {way: round(middle["sftrun"]["tokens_per_s"] / middle[way]["tokens_per_s"], 3) for way in ways[1:]}
    return {"device": device, "peak_tflops": peak, "medians": middle, "sftrun_over": over, "needed": needed,
            "rounds": rounds}  # fmt: skip


def main() -> None:
    """Measures and prints; raw numbers go to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default=None)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=None, help="A file for all numbers, as JSON.")
    parser.add_argument("--peak", type=float, default=None, help="Dense bf16 TFLOP/s of a GPU that is not known here.")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--trl-batch", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one[0], Path(args.one[1]), args.case, args.trl_batch)))
        return
    import torch

    if not torch.cuda.is_available() and not args.small:
        sys.exit("there is no GPU; --small runs the same in small")
    found = {name: measure(name, args) for name in ([args.case] if args.case else CASES)}
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({name: {key: each[key] for key in list(each)[:4]} for name, each in found.items()}, indent=1))


if __name__ == "__main__":
    main()
