"""`sftrun plan`: estimates what a recipe needs, before a model is loaded."""

import json
import sys
from typing import Any

import click

from sftrun.cli import progress, table
from sftrun.cli.options import overrides
from sftrun.recipe.overrides import set_options
from sftrun.recipe.train_options import describe_warmup
from sftrun.runs.numbers import byte_count

FIXABLE = 1


@click.command()
@click.argument("recipe", type=click.Path(dir_okay=False))
@overrides
@click.option(
    "--no-data", is_flag=True, help="Do not prepare the data: assume full batches, an unknown number of steps."
)
@click.option("--probe", is_flag=True, help="Run a few steps, an evaluation and a save, and measure them.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON on standard output.")
def command(recipe: str, sets: tuple[str, ...], no_data: bool, probe: bool, as_json: bool) -> int:
    """Estimate what a recipe needs: parameters, steps, memory. Exits with 1 if it does not fit this machine."""
    from sftrun.tools.plan import plan

    if no_data and probe:
        raise click.UsageError("--probe needs the data that --no-data leaves out; use one of the two")
    with progress.watcher() as watch:
        planned = plan(recipe, sets, watch, data=not no_data, probe=probe)
    if as_json:
        print(json.dumps(planned, indent=2, ensure_ascii=False))
    else:
        _show(planned)
    return FIXABLE if planned["verdict"] == "does not fit" else 0


def _show(planned: dict[str, Any]) -> None:
    _print(_parameters(planned) if "parameters" in planned else f"{planned['model']}: its backend gives no estimate")
    _print(_batch(planned))
    if planned["chosen"]:
        _print(_chosen(planned["chosen"]))
    if "memory" in planned:
        _show_memory(planned["memory"])
    for note in planned["notes"]:
        _print(f"note: {note}")
    if "measured" in planned:
        _print(_measured(planned["measured"]))
    _print(_disk(planned["disk"]))
    _print(_verdict(planned))
    if planned["changes"]:
        _show_changes(planned["changes"])
    elif planned.get("peak", 0) > planned["device"]["free"]:
        _print("no smaller batch, shorter rows or adapter makes it fit: use a smaller model, or a larger machine")


def _parameters(planned: dict[str, Any]) -> str:
    trained, frozen = planned["parameters"]["trained"], planned["parameters"]["frozen"]
    share = f", {trained / (trained + frozen):.2%} of all" if frozen else ""
    return f"{planned['model']}: {trained:,} parameters trained{share}; {frozen:,} frozen"


def _batch(planned: dict[str, Any]) -> str:
    batch, data = planned["batch"], planned["data"]
    largest = f"largest batch: {batch['rows']:,} rows, the longest of {batch['longest']:,} tokens"
    if data is None:
        return f"data: not prepared; {largest}"
    packed = f" in {data['sequences']:,} packed sequences" if "sequences" in data else ""
    counts = f"{data['rows']:,} rows{packed}, {data['tokens']:,} tokens, {data['trained_tokens']:,} of them trained"
    warmup = describe_warmup(data["warmup_steps"], data["steps"])
    return f"data: {counts}; {data['steps']:,} steps, {warmup}; {largest}"


def _chosen(chosen: dict[str, Any]) -> str:
    how = "measured" if chosen["measured"] else "estimated; a run measures it, as --probe does"
    micro_batch, accum = chosen["batch_size"], chosen["grad_accum"]
    return f"train.batch_size auto: chose batch_size {micro_batch} and grad_accum {accum} ({how})"


def _show_memory(memory: dict[str, dict[str, int]]) -> None:
    parts = dict.fromkeys(part for each in memory.values() for part in each)
    rows = [[part, *(byte_count(each[part]) if each.get(part) else "" for each in memory.values())] for part in parts]
    totals = ["total", *(byte_count(sum(each.values())) for each in memory.values())]
    table.show(["memory", *memory], [*rows, totals])


def _measured(measured: dict[str, Any]) -> str:
    step, training = measured["seconds_per_step"], measured["seconds"]
    return f"measured: {byte_count(measured['peak'])} at peak; {step:.2f} s per step, {_time(training)} of training"


def _disk(disk: dict[str, Any]) -> str:
    kept = "all are kept" if disk["kept"] is None else f"{disk['kept']} are kept"
    each = f"{byte_count(disk['checkpoint'])} per checkpoint, " if "checkpoint" in disk else "of the checkpoints, "
    return f"disk: {each}{kept}; {byte_count(disk['free'])} free"


def _verdict(planned: dict[str, Any]) -> str:
    device, source = planned["device"], "measured" if "measured" in planned else "estimated"
    needed = planned.get("measured", planned)["peak"]
    has = f"{device['name']} has {byte_count(device['free'])} free of {byte_count(device['total'])}"
    return f"{planned['verdict']}: {byte_count(needed)} {source}, {has}"


def _show_changes(changes: list[dict[str, Any]]) -> None:
    rows = []
    for change in changes:
        longer = f"{change['rows_too_long']:,} rows are longer" if "rows_too_long" in change else ""
        rows.append([set_options(change["set"]), byte_count(change["peak"]), longer])
    table.show(["what would fit", "memory", ""], rows)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _print(text: str) -> None:
    print(text, file=sys.stderr)
