"""lock.json: versions, plugins, hardware and overrides of a run, to reproduce it."""

import os
import platform
import subprocess
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from sftrun.gpus import visible_gpus
from sftrun.options import Use, parse
from sftrun.recipe.model import Recipe, components
from sftrun.recipe.walk import kind_of
from sftrun.registry import Registered, Registry

PACKAGES = (
    *("torch", "transformers", "trl", "peft", "datasets", "accelerate", "tokenizers", "safetensors"),
    *("huggingface_hub", "numpy", "pyarrow", "jinja2", "bitsandbytes", "sacrebleu", "rouge-score"),
    *("pluggy", "msgspec", "jsonschema", "ruamel.yaml"),
)


def facts(recipe: Recipe, registry: Registry, overrides: Sequence[str]) -> dict[str, Any]:
    """Returns the facts that are known before a run starts: versions, plugins, hardware, git, seed."""
    from sftrun import __version__

    return {
        "sftrun": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "plugins": list(_plugins(recipe, registry)),
        "hardware": _hardware(),
        "git": _git(),
        "seed": recipe.seed,
        "overrides": list(overrides),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _plugins(recipe: Recipe, registry: Registry) -> Iterator[dict[str, str]]:
    for kind, use in components(recipe):
        for item in _with_inner(kind, use, registry):
            yield {"kind": item.kind, "name": item.name, "distribution": item.distribution, "version": item.version}


def _with_inner(kind: str, use: Use, registry: Registry) -> Iterator[Registered]:
    """Yields a component, and the components that its options name."""
    item = registry.get(kind, use.use)
    yield item
    for name, about in item.schema()["properties"].items():
        inner, value = kind_of(about), use.with_.get(name)
        if inner is None or not value:
            continue
        for each in value if isinstance(value, list) else [value]:
            yield from _with_inner(inner, parse({"use": each} if isinstance(each, str) else each, Use), registry)


def _hardware() -> dict[str, Any]:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    return {"cpus": os.cpu_count(), "memory_gb": round(pages / 2**30, 1), "gpus": _gpus()}


def _gpus() -> list[dict[str, Any]]:
    return [{"name": gpu.name, "memory_gb": gpu.total and round(gpu.total / 2**30, 1)} for gpu in visible_gpus()]


def _git() -> dict[str, Any] | None:
    commit = _run(["git", "rev-parse", "HEAD"]).strip()
    return {"commit": commit, "dirty": bool(_run(["git", "status", "--porcelain"]).strip())} if commit else None


def _run(command: list[str]) -> str:
    """Returns the output of a command; an empty text if it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, cwd=Path.cwd()).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
