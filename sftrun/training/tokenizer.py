"""The transformers tokenizer of a recipe: trainers need one, but the data are prepared without it."""

from typing import Any

import sftrun
import sftrun.data
from sftrun.training import pretrained

ROLES = (
    "bos_token",
    "eos_token",
    "pad_token",
)  # special tokens that transformers' trainer writes to the model's config


def load_transformers_tokenizer(recipe: sftrun.Recipe, run: sftrun.RunDir, emit: sftrun.kinds.Emit) -> Any:
    """Loads the tokenizer; warns if its ids of a prepared row differ from the ids by tokenizer.json."""
    own = sftrun.data.load_tokenizer(recipe.model)
    tokens = pretrained.load_tokenizer(own.folder, recipe.model)
    _unset_unknown(tokens, own, emit)
    examples = run.read_json("prepared/proof.json")["splits"]["train"]["examples"]
    for example, sample in zip(examples, sftrun.data.Samples(run.prepared / "train.arrow"), strict=False):
        text = "".join(piece for piece, _ in example["pieces"])
        if tokens(text, add_special_tokens=False)["input_ids"] != sample.ids:
            message = f"transformers' tokenizer gives other ids than tokenizer.json for {example['origin']}"
            emit(sftrun.events.Warned(message=message))
            break
    return tokens


def _unset_unknown(tokens: Any, own: Any, emit: sftrun.kinds.Emit) -> None:
    """Unsets special tokens that tokenizer.json lacks: transformers invents ids for them, without an embedding."""
    for role in ROLES:
        text = own.special.get(role)
        if text is not None and own.id_of(role) is None:
            setattr(tokens, role, None)
            message = (
                f"{role} {text!r} of tokenizer_config.json is not in tokenizer.json, so it has no id and is not used"
            )
            emit(sftrun.events.Warned(message=f"{message}; add it there, or name a token that is there"))


def pad_id(tokens: Any) -> int:
    """Returns the id for padding: the pad token's, else the EOS token's, else 0; attention masks hide it."""
    return int(next((each for each in (tokens.pad_token_id, tokens.eos_token_id) if each is not None), 0))
