"""The table at the end of a run: every metric before and after training."""

from typing import Any

from sftrun.cli import table
from sftrun.runs.directory import RunDir


def show(run: RunDir) -> None:
    """Prints the metrics of the base and of the tuned model, side by side."""
    scores = run.read_json("eval/scores.json")
    if not scores:
        return
    about = scores.get("metrics", {})
    rows = [
        [
            f"{evaluator}: {metric}{_note(about.get(evaluator, {}).get(metric, {}))}",
            _number(scores["base"][evaluator].get(metric)),
            _number(value),
        ]
        for evaluator, metrics in scores["tuned"].items()
        for metric, value in metrics.items()
    ]
    table.show(["metric", "before", "after"], rows)


def _note(about: dict[str, Any]) -> str:
    return " (lower is better)" if about.get("higher_is_better") is False else ""


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if abs(value) >= 1000 else f"{value:.4f}"
