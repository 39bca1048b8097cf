"""`sftrun eval`: runs the evaluators of a finished run again."""

import json
import sys

import click

from sftrun.cli import progress, scores


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print the scores as JSON on standard output.")
def command(run: str, as_json: bool) -> None:
    """Score the base and the tuned model of a run directory again."""
    from sftrun.flow import evaluate

    with progress.watcher() as watch:
        done = evaluate(run, watch)
    if as_json:
        print(json.dumps(done.read_json("eval/scores.json"), indent=2))
    else:
        scores.show(done)
    print(f"report: {done.path / 'report.html'}", file=sys.stderr)
