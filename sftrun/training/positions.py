"""The longest sequence that a model has positions for, read from its config.json without loading the model."""

from collections.abc import Iterator
from typing import Any

import sftrun
import sftrun.data
from sftrun.training import base_model

KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "context_length")
# RoPE scaling by a factor that the number of positions in the config does not include; other kinds include theirs
SCALED = ("linear", "dynamic", "yarn")


def check_positions(recipe: sftrun.Recipe, run: sftrun.RunDir) -> Iterator[sftrun.Problem]:
    """Yields a problem if a prepared row is longer than the model's positions: it would train on garbage, or crash."""
    limit = position_limit(base_model.read_config(recipe))
    for split in ("train", "val") if limit else ():
        file = run.prepared / f"{split}.arrow"
        longest = int(max(sftrun.data.Samples(file).lengths, default=0)) if file.is_file() else 0
        if limit and longest > limit:
            message = (
                f"the longest row of {split} has {longest:,} tokens, and {recipe.model.name} has {limit:,} positions"
            )
            hint = f"set max_seq_len to {limit} at most; data.on_too_long decides about longer rows"
            yield sftrun.Problem(message, path=("model", "max_seq_len"), hint=hint)


def position_limit(config: dict[str, Any]) -> int | None:
    """Returns the number of positions by a config.json, with its RoPE scaling; None if there is no limit."""
    text = {**config, **(config.get("text_config") or {})}
    limit = next((int(text[key]) for key in KEYS if isinstance(text.get(key), int)), 0)
    if limit <= 0:
        return None
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    if rope.get("rope_type", rope.get("type")) not in SCALED:
        return limit
    before = rope.get("original_max_position_embeddings") or limit
    return max(limit, int(before * (rope.get("factor") or 1)))
