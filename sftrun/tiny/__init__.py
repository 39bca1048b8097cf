"""The embedded model `sftrun/tiny`: a decoder with 0.5 M parameters that learns visibly in a minute on two cores.

The tokenizer and the chat template are in this folder. The weights are drawn from a seed when they are needed, so
nothing is downloaded. The model knows nothing before it is trained: it is for trying out recipes, and for tests.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftrun.files import file_digest

if TYPE_CHECKING:
    import torch

NAME = "sftrun/tiny"
SEAL = "sealed.json"  # hashes of the files of a model folder in the cache
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

PADDING, END_OF_TURN = 0, 2  # <|endoftext|> and <|im_end|>

ARCHITECTURE: dict[str, Any] = {
    "vocab_size": 768,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,  # Qwen3 does not derive it from the hidden size
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "initializer_range": 0.05,  # the usual 0.02 learns far slower at this width
    "pad_token_id": PADDING,
    "bos_token_id": None,
    "eos_token_id": END_OF_TURN,
}


def folder() -> Path:
    """Returns the folder of the tokenizer files."""
    return Path(__file__).resolve().parent


def fingerprint() -> str:
    """Returns a hash that changes with the tokenizer, the template or the architecture."""
    digest = hashlib.sha256(json.dumps(ARCHITECTURE, sort_keys=True).encode())
    for name in TOKENIZER_FILES:
        digest.update((folder() / name).read_bytes())
    return digest.hexdigest()


def save(directory: Path, seed: int) -> None:
    """Writes a complete Hugging Face model folder; the weights depend on the seed alone."""
    import torch
    from safetensors.torch import save_file
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(**ARCHITECTURE, architectures=["Qwen3ForCausalLM"], dtype="float32")
    with torch.device("meta"):  # only names and shapes: the random state of the caller does not change
        shapes = {name: parameter.shape for name, parameter in Qwen3ForCausalLM(config).named_parameters()}
    directory.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(directory)
    GenerationConfig(do_sample=False, eos_token_id=END_OF_TURN, pad_token_id=PADDING).save_pretrained(directory)
    save_file(_weights(shapes, seed), directory / "model.safetensors", metadata={"format": "pt"})
    for name in TOKENIZER_FILES:
        shutil.copyfile(folder() / name, directory / name)


def seal(directory: Path) -> None:
    """Writes the hash of every file of a model folder into it, for `is_intact`."""
    hashes = {file.name: file_digest(file) for file in sorted(directory.iterdir())}
    (directory / SEAL).write_text(json.dumps(hashes))


def is_intact(directory: Path) -> bool:
    """Returns True if a model folder has the files that were sealed in it, and no others."""
    try:
        hashes = json.loads((directory / SEAL).read_text())
        return bool(hashes == {file.name: file_digest(file) for file in directory.iterdir() if file.name != SEAL})
    except (OSError, ValueError):
        return False


def _weights(shapes: "dict[str, torch.Size]", seed: int) -> "dict[str, torch.Tensor]":
    """Draws weights in the order of their names, so that no release of transformers changes them."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in sorted(shapes.items()):
        if len(shape) == 1:  # the norms
            weights[name] = torch.ones(shape, dtype=torch.float32)
        else:
            noise = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
            weights[name] = noise * ARCHITECTURE["initializer_range"]
    return weights
