"""Tokens that a tokenizer has and its model does not know yet."""

from itertools import islice
from pathlib import Path
from typing import Any

import torch

import sftrun
import sftrun.data

EXAMPLES = 256  # samples that are looked through for tokens whose embedding is empty


def fit(model: Any, tokenizer: Any) -> None:
    """Gives a model an embedding for every id of its tokenizer.

    New rows are the mean of the old ones: a token like any other, until it is trained
    (https://nlp.stanford.edu/~johnhew/vocab-expansion.html).
    """
    known, wanted = model.get_input_embeddings().weight.shape[0], size(tokenizer)
    if wanted <= known:
        return
    on_gpu = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(on_gpu), torch.no_grad():  # transformers draws rows that are then replaced
        model.resize_token_embeddings(wanted, mean_resizing=False)
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight[known:] = layer.weight[:known].float().mean(0).to(layer.weight.dtype)


def size(tokenizer: Any) -> int:
    """One more than the highest id."""
    known: int = tokenizer.engine.get_vocab_size(with_added_tokens=True)
    return int(max(known, *(number + 1 for number in tokenizer.added), 0))


def untrained(model: Any, tokenizer: Any, rows: int, samples: Path) -> list[int]:
    """Ids without a meaning yet: those that `fit` has added to the `rows` of the base, and, among the special tokens
    of the first samples, those whose embedding is zero, as in base models that reserve tokens for a chat template."""
    seen = {token for sample in islice(sftrun.data.Samples(samples), EXAMPLES) for token in sample.ids}
    weight = model.get_input_embeddings().weight.detach()
    known = [token for token in sorted(seen & set(tokenizer.added)) if token < rows]
    return [*(token for token in known if not weight[token].any()), *range(rows, len(weight))]
