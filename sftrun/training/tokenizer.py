"""transformers' tokenizer of a recipe, which trainers ask for; what is trained on was made without it."""

from typing import Any

import transformers

import sftrun
import sftrun.data


def transformers_tokenizer(recipe: sftrun.Recipe, run: sftrun.RunDir, emit: sftrun.kinds.Emit) -> Any:
    """The tokenizer; warns where it reads the prepared rows as other ids than the tokenizer.json that made them."""
    tokens = transformers.AutoTokenizer.from_pretrained(sftrun.data.load_tokenizer(recipe.model).folder)
    examples = run.read_json("prepared/proof.json")["splits"]["train"]["examples"]
    for example, sample in zip(examples, sftrun.data.Samples(run.prepared / "train.arrow"), strict=False):
        text = "".join(piece for piece, _ in example["pieces"])
        if tokens(text, add_special_tokens=False)["input_ids"] != sample.ids:
            message = f"transformers' tokenizer reads {example['origin']} as other ids than tokenizer.json does"
            emit(sftrun.events.Warned(message=message))
            break
    return tokens


def pad_id(tokens: Any) -> int:
    """The id that fills up rows; they are never seen there."""
    return int(tokens.pad_token_id if tokens.pad_token_id is not None else tokens.eos_token_id)
