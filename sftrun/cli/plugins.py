"""`sftrun plugins`: lists installed components and broken plugins."""

import json
from typing import Any

import click

from sftrun import scrub
from sftrun.registry import Registry, current


@click.command("plugins")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
def command(as_json: bool) -> None:
    """List installed components with the distribution of each, and plugins that are broken."""
    data = _data(current())
    print(json.dumps(data, indent=2) if as_json else scrub.printable(_table(data)))


def _data(registry: Registry) -> dict[str, Any]:
    components = [
        {
            "kind": kind,
            "name": item.name,
            "distribution": item.distribution,
            "version": item.version,
            "description": item.description,
            "clash": problem.message if (problem := registry.clashes.get((kind, item.name))) else None,
            "warnings": list(item.warnings),
        }
        for kind, items in registry.components.items()
        for item in sorted(items.values(), key=lambda item: item.name)
    ]
    broken = [
        {"module": b.module, "distribution": b.distribution, "version": b.version, "reason": b.reason}
        for b in registry.broken
    ]
    return {"components": components, "broken": broken}


def _table(data: dict[str, Any]) -> str:
    rows = [
        (item["kind"], item["name"], f"{item['distribution']} {item['version']}", item["description"])
        for item in data["components"]
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows
    ]
    lines += [f"clash: {item['clash']}" for item in data["components"] if item["clash"]]
    lines += [
        f"warning: the {item['kind']} '{item['name']}' of {item['distribution']} {item['version']} {text}"
        for item in data["components"]
        for text in item["warnings"]
    ]
    for plugin in data["broken"]:
        reason = " ".join(plugin["reason"].split())
        lines.append(f"broken: {plugin['module']} of {plugin['distribution']} {plugin['version']}: {reason}")
    return "\n".join(line.rstrip() for line in lines)
