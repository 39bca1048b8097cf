"""A packed training step on the CPU, compared with separate sequences: forward and backward, same tokens and model.

    python benchmarks/packed_step.py [--tokens N] [--hidden N] [--layers N] [--longest N] [--rounds N] [--threads N]

The sequences fill one row of `tokens`. Each round runs four ways: packed (attention by sequence, as the backend
trains), packed with sdpa's mask of length × length, one by one, and padded in batches of 8 rows of similar lengths.
Prints one JSON object: median seconds, and the median over rounds of packed ÷ each other way.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import transformers

from sftrun.training.batches import PaddingCollator, flatten_packs
from sftrun.training.model import attention, isolation

BATCH = 8  # rows that are padded together
WORDS = 8192


def build_model(hidden: int, layers: int, positions: int) -> Any:
    """Builds a Qwen3 with grouped heads; 18 M parameters by default."""
    config = transformers.Qwen3Config(
        vocab_size=WORDS,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        head_dim=64,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).train()


def samples(tokens: int, longest: int) -> list[dict[str, Any]]:
    """Returns sequences with the lengths of short chats, `tokens` in total."""
    random = np.random.default_rng(0)
    lengths: list[int] = []
    while (left := tokens - sum(lengths)) > 0:
        drawn = int(np.clip(random.lognormal(4.3, 0.68), 16, longest))
        lengths.append(min(drawn, left))
    return [{"input_ids": ids, "labels": ids.copy()} for ids in (random.integers(1, WORDS, n) for n in lengths)]


def packed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns all rows as one pack."""
    joined = {name: np.concatenate([row[name] for row in rows]) for name in ("input_ids", "labels")}
    return [flatten_packs([{**joined, "seq_lengths": [len(row["input_ids"]) for row in rows]}])]


def padded(rows: list[dict[str, Any]], batch: int) -> list[dict[str, Any]]:
    """Returns padded batches of rows of similar lengths."""
    collate = PaddingCollator(0)
    rows = sorted(rows, key=lambda row: len(row["input_ids"]))
    return [collate(rows[start : start + batch]) for start in range(0, len(rows), batch)]


def step(model: Any, batches: list[dict[str, Any]], attention: str) -> float:
    """Returns the seconds of the forward and backward passes of all batches."""
    model.set_attn_implementation(attention)
    model.zero_grad(set_to_none=True)
    count = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
    started = time.perf_counter()
    for batch in batches:
        model(**batch, use_cache=False, num_items_in_batch=count).loss.backward()
    return time.perf_counter() - started


def rounds(model: Any, ways: dict[str, Callable[[], float]], count: int) -> Iterator[dict[str, float]]:
    """Yields the seconds of each way, round by round, after a warm-up round."""
    for number in range(count + 1):
        took = {name: way() for name, way in ways.items()}
        if number:
            yield took


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    for name, default in {
        "tokens": 2048,
        "hidden": 384,
        "layers": 8,
        "longest": 725,
        "rounds": 5,
        "threads": 0,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    model = build_model(arguments.hidden, arguments.layers, arguments.tokens)
    rows = samples(arguments.tokens, arguments.longest)
    attention.isolate(model)
    isolation.check_isolation(model, "fp32")
    batches = {"packed": packed(rows), "one by one": padded(rows, 1), "padded": padded(rows, BATCH)}
    ways: dict[str, Callable[[], float]] = {
        "packed": lambda: step(model, batches["packed"], attention.NAME),
        "packed, length × length": lambda: step(model, batches["packed"], "sdpa"),
        "one by one": lambda: step(model, batches["one by one"], "sdpa"),
        "padded": lambda: step(model, batches["padded"], "sdpa"),
    }
    took = list(rounds(model, ways, arguments.rounds))
    result = {
        "parameters": model.num_parameters(),
        "tokens": arguments.tokens,
        "sequences": len(rows),
        "padding": round(1 - arguments.tokens / sum(batch["input_ids"].numel() for batch in batches["padded"]), 3),
        "seconds": {name: round(statistics.median(each[name] for each in took), 3) for name in ways},
        "packed_over": {
            name: round(statistics.median(each["packed"] / each[name] for each in took), 3)
            for name in ways
            if name != "packed"
        },
    }
    print(json.dumps(result, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
