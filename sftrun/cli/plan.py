"""`sftrun plan`: what a recipe will take, before anything is loaded."""

import json
import sys
from typing import Any

import click

from sftrun.cli import progress, table
from sftrun.cli.options import overrides

FIXABLE = 1


@click.command()
@click.argument("recipe", type=click.Path(dir_okay=False))
@overrides
@click.option("--no-data", is_flag=True, help="Do not prepare data: batches are taken to be full, steps stay unknown.")
@click.option("--probe", is_flag=True, help="Run a few steps, an evaluation and a save, and measure.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON on standard output.")
def command(recipe: str, sets: tuple[str, ...], no_data: bool, probe: bool, as_json: bool) -> int:
    """Say what a recipe will take: parameters, steps, memory; exit code 1 where it does not fit this machine."""
    from sftrun.tools.plan import plan

    if no_data and probe:
        raise click.UsageError("--probe runs steps, so it needs the data that --no-data leaves out")
    with progress.watcher() as watch:
        found = plan(recipe, sets, watch, data=not no_data, probe=probe)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        _show(found)
    return FIXABLE if found["verdict"] == "does not fit" else 0


def _show(found: dict[str, Any]) -> None:
    _say(_parameters(found) if "parameters" in found else f"{found['model']}: its backend estimates nothing")
    _say(_batch(found))
    if found["chosen"]:
        _say(_chosen(found["chosen"]))
    if "memory" in found:
        _show_memory(found["memory"])
    for note in found["notes"]:
        _say(f"note: {note}")
    if "measured" in found:
        _say(_measured(found["measured"]))
    _say(_disk(found["disk"]))
    _say(_verdict(found))
    if found["changes"]:
        _show_changes(found["changes"])
    elif found.get("peak", 0) > found["device"]["free"]:
        _say("no smaller batch, shorter rows or adapter would make it fit: it takes a smaller model, or more memory")


def _parameters(found: dict[str, Any]) -> str:
    trained, frozen = found["parameters"]["trained"], found["parameters"]["frozen"]
    share = f", {trained / (trained + frozen):.2%} of all" if frozen else ""
    return f"{found['model']}: {trained:,} parameters trained{share}; {frozen:,} frozen"


def _batch(found: dict[str, Any]) -> str:
    batch, data = found["batch"], found["data"]
    largest = f"largest batch: {batch['rows']:,} rows, the longest of {batch['longest']:,} tokens"
    if data is None:
        return f"data: not looked at; {largest}"
    packed = f" in {data['sequences']:,} sequences" if "sequences" in data else ""
    counts = f"{data['rows']:,} rows{packed}, {data['tokens']:,} tokens, {data['trained_tokens']:,} of them trained"
    return f"data: {counts}; {data['steps']:,} steps; {largest}"


def _chosen(chosen: dict[str, Any]) -> str:
    how = "measured" if chosen["measured"] else "estimated; --probe measures it, as a run does"
    size, accum = chosen["batch_size"], chosen["grad_accum"]
    return f"train.batch_size auto: {size} rows at a time, train.grad_accum {accum} ({how})"


def _show_memory(memory: dict[str, dict[str, int]]) -> None:
    parts = dict.fromkeys(part for each in memory.values() for part in each)
    rows = [[part, *(_size(each[part]) if each.get(part) else "" for each in memory.values())] for part in parts]
    totals = ["in all", *(_size(sum(each.values())) for each in memory.values())]
    table.show(["memory", *memory], [*rows, totals])


def _measured(measured: dict[str, Any]) -> str:
    each, whole = measured["seconds_per_step"], measured["seconds"]
    return f"measured: {_size(measured['peak'])} at most; {each:.2f} s a step, training {_time(whole)} in all"


def _disk(disk: dict[str, Any]) -> str:
    kept = "all are kept" if disk["kept"] is None else f"{disk['kept']} are kept"
    each = f"{_size(disk['checkpoint'])} a checkpoint, " if "checkpoint" in disk else "of checkpoints, "
    return f"disk: {each}{kept}; {_size(disk['free'])} free"


def _verdict(found: dict[str, Any]) -> str:
    device, source = found["device"], "measured" if "measured" in found else "estimated"
    needed = found.get("measured", found)["peak"]
    has = f"{device['name']} has {_size(device['free'])} free of {_size(device['total'])}"
    return f"{found['verdict']}: {_size(needed)} {source}, {has}"


def _show_changes(changes: list[dict[str, Any]]) -> None:
    rows = [[" ".join(f"--set {key}={_value(value)}" for key, value in each["set"].items())] for each in changes]
    lost = [f"{each['rows_too_long']:,} rows are longer" if "rows_too_long" in each else "" for each in changes]
    full = [[*row, _size(each["peak"]), said] for row, each, said in zip(rows, changes, lost, strict=True)]
    table.show(["what would fit", "memory", ""], full)


def _value(value: Any) -> str:
    return json.dumps(value).strip('"')


def _size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _say(text: str) -> None:
    print(text, file=sys.stderr)
