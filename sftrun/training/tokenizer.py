"""The transformers tokenizer of a recipe: trainers need one, but the data are prepared without it."""

from typing import Any

import sftrun
import sftrun.data
from sftrun.training import pretrained


def load_transformers_tokenizer(recipe: sftrun.Recipe, run: sftrun.RunDir, emit: sftrun.kinds.Emit) -> Any:
    """Loads the tokenizer; warns if its ids of a prepared row differ from the ids by tokenizer.json."""
    tokens = pretrained.load_tokenizer(sftrun.data.load_tokenizer(recipe.model).folder, recipe.model)
    examples = run.read_json("prepared/proof.json")["splits"]["train"]["examples"]
    for example, sample in zip(examples, sftrun.data.Samples(run.prepared / "train.arrow"), strict=False):
        text = "".join(piece for piece, _ in example["pieces"])
        if tokens(text, add_special_tokens=False)["input_ids"] != sample.ids:
            message = f"transformers' tokenizer gives other ids than tokenizer.json for {example['origin']}"
            emit(sftrun.events.Warned(message=message))
            break
    return tokens


def pad_id(tokens: Any) -> int:
    """Returns the id for padding; attention masks hide it."""
    return int(tokens.pad_token_id if tokens.pad_token_id is not None else tokens.eos_token_id)
