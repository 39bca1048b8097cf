"""Small models of public families, and a few rows with the columns of public datasets: what recipes need of the Hub."""

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import tokenizers
import trl

from sftrun import tiny
from sftrun.recipe.model import ModelOptions
from sftrun.tools import shrink

TEMPLATES = Path(trl.__file__).parent / "chat_templates"

# As Mistral's documentation has it: <s>[INST] Hello, how are you?[/INST] Fine, and you?</s>[INST] …
INST = """{{- bos_token -}}
{%- if messages[0].role == 'system' -%}
{%- set prefix, talk = messages[0].content + '\\n\\n', messages[1:] -%}
{%- else -%}{%- set prefix, talk = '', messages -%}{%- endif -%}
{%- for m in talk -%}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}{{- raise_exception('roles must alternate') -}}{%- endif -%}
{%- if m.role == 'user' -%}{{- '[INST] ' + (prefix if loop.first else '') + m.content + '[/INST]' -}}
{%- else -%}{{- ' ' + m.content + eos_token -}}{%- endif -%}
{%- endfor -%}"""

# Configs as the models on the Hub have them, and the tokens that their templates write.
LLAMA3 = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
LLAMA3 |= {"num_key_value_heads": 8, "model_type": "llama", "rope_theta": 500000.0, "tie_word_embeddings": False}
MISTRAL = {**LLAMA3, "model_type": "mistral", "rope_theta": 1000000.0, "sliding_window": None}
QWEN = {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12}
QWEN |= {"num_key_value_heads": 2, "model_type": "qwen2", "rope_theta": 1000000.0, "tie_word_embeddings": True}
SMOL = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
SMOL |= {"num_key_value_heads": 3, "model_type": "llama", "rope_theta": 100000.0, "tie_word_embeddings": True}
HEADERS = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]


def template(name: str) -> str:
    """A chat template that trl ships."""
    return (TEMPLATES / f"{name}.jinja").read_text("utf-8")


FAMILIES: dict[str, tuple[dict[str, Any], str | None, list[str]]] = {
    "llama3": (LLAMA3, template("llama3"), HEADERS),
    "mistral": (MISTRAL, INST, ["<s>", "</s>", "[INST]", "[/INST]"]),
    "qwen": (QWEN, template("qwen2_5"), ["<|endoftext|>", "<|im_end|>"]),
    "smol": (SMOL, None, ["<|endoftext|>", "<|endoftext|>"]),  # a base model: no template
}


def model(family: str, folder: Path, weights: bool = True) -> Path:
    """A model folder of a family: its architecture, its template and its control tokens, with tiny random weights.

    Without `weights` it is the config alone, as large as the model on the Hub.
    """
    config, source, (bos, eos, *others) = FAMILIES[family]
    whole = folder / f"{family}-config"
    whole.mkdir(parents=True, exist_ok=True)
    engine = tokenizers.Tokenizer.from_file(str(tiny.folder() / "tokenizer.json"))
    engine.add_special_tokens([bos, eos, *others])
    engine.save(str(whole / "tokenizer.json"))
    special = {"bos_token": bos, "eos_token": eos, "pad_token": eos}
    (whole / "tokenizer_config.json").write_text(json.dumps(special))
    if source:
        (whole / "chat_template.jinja").write_text(source, "utf-8")
    size = engine.get_vocab_size(with_added_tokens=True)
    ids = {"bos_token_id": engine.token_to_id(bos), "eos_token_id": engine.token_to_id(eos)}
    made = {**config, **ids, "vocab_size": size, "max_position_embeddings": 8192}
    (whole / "config.json").write_text(json.dumps(made))
    if not weights:
        return whole
    (folder / family).mkdir()
    shrink.save_tiny_model(whole, folder / family, 0, ModelOptions(name=str(whole)))
    shutil.copyfile(whole / "tokenizer_config.json", folder / family / "tokenizer_config.json")
    return folder / family


def dataset(rows: list[dict[str, Any]], folder: Path, *splits: str) -> Path:
    """A dataset as `save_to_disk` leaves it, with the same rows in each split."""
    datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split in splits}).save_to_disk(str(folder))
    return folder
