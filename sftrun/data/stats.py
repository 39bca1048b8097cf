"""Statistics of prepared data, for `sftrun prepare` and `prepared/stats.json`."""

from typing import Any

import numpy as np

from sftrun.data.ledger import Counts
from sftrun.data.proof import Tally, count_by_role

BARS = 12  # bars of the length histogram, at most


def compute_stats(tally: Tally, split: str, rows_in: int, entries: Counts) -> dict[str, Any]:
    """Returns the statistics of one split: rows, losses and changes with reasons, tokens, lengths, duplicates."""
    lost = entries.list_lost(split)
    first = entries.find_first_lost(split) if lost else None
    return {
        "rows_in": rows_in,
        "rows": tally.rows,
        "lost": lost,
        "first_lost": first and {"origin": first.origin, "detail": first.detail},
        "changed": entries.list_others(split),
        "tokens": tally.tokens,
        "trained_tokens": tally.trained,
        "tokens_lost": entries.tokens[split],
        "trained_tokens_lost": entries.trained[split],
        "system_prompts": tally.system_prompts.to_json(),
        "by_role": count_by_role(tally.counts),
        "duplicates": tally.count_duplicates(),
        "length": _summarise_lengths(tally.lengths),
    }


def _summarise_lengths(histogram: Any) -> dict[str, Any]:
    """Returns mean, quantiles and a histogram `[longest length of the bar, samples]` of lengths in tokens."""
    rows = int(histogram.sum())
    if not rows:
        return {"mean": 0.0, "p50": 0, "p95": 0, "max": 0, "histogram": []}
    longest = int(np.flatnonzero(histogram)[-1])
    upto = np.cumsum(histogram)
    width = -(-longest // BARS)
    bars = [[last, int(histogram[last - width + 1 : last + 1].sum())] for last in range(width, longest + width, width)]
    return {
        "mean": round(float((histogram * np.arange(len(histogram))).sum() / rows), 1),
        "p50": int(np.searchsorted(upto, rows * 0.5)),
        "p95": int(np.searchsorted(upto, rows * 0.95)),
        "max": longest,
        "histogram": bars,
    }
