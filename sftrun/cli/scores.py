"""The table at the end of a run: every metric before and after training."""

from sftrun.cli import table
from sftrun.runs.directory import RunDir


def show(run: RunDir) -> None:
    """Prints the metrics of the base and of the tuned model, side by side."""
    scores = run.read_json("eval/scores.json")
    if not scores:
        return
    rows = [
        [f"{evaluator}: {metric}", _number(scores["base"][evaluator].get(metric)), _number(value)]
        for evaluator, metrics in scores["tuned"].items()
        for metric, value in metrics.items()
    ]
    table.show(["metric", "before", "after"], rows)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if abs(value) >= 1000 else f"{value:.4f}"
