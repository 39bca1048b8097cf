"""Extends a model's embeddings to the tokenizer's vocabulary, and finds tokens without a trained embedding."""

from itertools import islice
from pathlib import Path
from typing import Any

import torch

import sftrun
import sftrun.data

EXAMPLES = 256  # samples that are searched for tokens with a zero embedding


def extend_embeddings(model: Any, tokenizer: Any) -> None:
    """Adds embeddings to a model until every id of its tokenizer has one.

    New rows are the mean of the old ones (https://nlp.stanford.edu/~johnhew/vocab-expansion.html).
    """
    known = model.get_input_embeddings().weight.shape[0]
    wanted = id_count(tokenizer)
    if wanted <= known:
        return
    on_gpu = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(on_gpu), torch.no_grad():  # transformers draws random rows first
        model.resize_token_embeddings(wanted, mean_resizing=False)
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight[known:] = layer.weight[:known].float().mean(0).to(layer.weight.dtype)


def id_count(tokenizer: Any) -> int:
    """Returns the highest id of a tokenizer, plus one."""
    known: int = tokenizer.engine.get_vocab_size(with_added_tokens=True)
    return int(max(known, *(number + 1 for number in tokenizer.added), 0))


def untrained_ids(model: Any, tokenizer: Any, rows: int, samples: Path) -> list[int]:
    """Returns the ids without a trained embedding.

    `extend_embeddings` has added the ids from `rows` on. The others are special tokens of the first samples with a zero
    embedding: some base models reserve tokens for a chat template.
    """
    seen = {token for sample in islice(sftrun.data.Samples(samples), EXAMPLES) for token in sample.ids}
    weight = model.get_input_embeddings().weight.detach()
    known = [token for token in sorted(seen & set(tokenizer.added)) if token < rows]
    return [*(token for token in known if not weight[token].any()), *range(rows, len(weight))]
