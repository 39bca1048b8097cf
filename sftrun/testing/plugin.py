"""Promises of a plugin module: its API version, light imports, complete components, described options."""

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from sftrun import registry
from sftrun.options import Options, schema
from sftrun.registry import Origin, Registered

HEAVY = {"torch", "transformers", "datasets", "numpy", "pandas", "pyarrow", "tokenizers"}
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
METRIC_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")  # a metric's name is also the key of its score


def check_plugin(module: ModuleType) -> None:
    """Raises AssertionError unless a module declares its API version, imports nothing heavy, and registers whole
    components.
    """
    name = module.__name__
    try:
        components = registry.collect(registry.hook_manager(), module, Origin(name, "the distribution under test", "0"))
    except Exception as error:
        raise AssertionError(f"{name} cannot be loaded: {type(error).__name__}: {error}") from error
    heavy = _heavy_imports(name)
    assert not heavy, f"importing {name} imports {', '.join(heavy)}; import such modules inside what uses them"
    for item in components:
        _check_component(item)


def _check_component(item: Registered) -> None:
    who = f"the {item.kind} {item.name!r} of {item.module}"
    pattern, mark = (METRIC_NAME, "underscores") if item.kind == "metric" else (NAME, "hyphens")
    assert pattern.fullmatch(item.name), f"{who}: a name is lower-case words with {mark} between them"
    assert item.description, f"{who} has no description; give its factory a docstring"
    factory = registry._resolve(item.factory)
    assert callable(factory), f"{who}: its factory cannot be called"
    try:
        for text in registry.check_class(item, factory):  # a factory given as text is imported only now
            warnings.warn(f"{who} {text}", DeprecationWarning, stacklevel=3)
    except ValueError as error:
        raise AssertionError(f"{who}: {error}") from error
    if item.options is not None:
        check_options(item.options)


def _heavy_imports(name: str) -> list[str]:
    # in a new process: this one has already imported much
    code = f"import importlib, sys; importlib.import_module({name!r}); print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{name} cannot be imported on its own: {done.stderr.strip()}"
    return sorted(HEAVY & set(done.stdout.split()))


def check_options(options: type) -> None:
    """Raises AssertionError unless the schema of an options class is closed, and every option described."""
    assert issubclass(options, Options), f"{options.__name__} must be a subclass of sftrun.Options"
    _check_schema(schema(options), options.__name__)


def _check_schema(node: Any, where: str) -> None:
    for inner in node if isinstance(node, list) else []:
        _check_schema(inner, where)
    if not isinstance(node, dict):
        return
    properties: Mapping[str, Any] = node.get("properties", {})
    if properties:
        assert node.get("additionalProperties") is False, f"{where} takes unknown keys; derive it from sftrun.Options"
    for name, inner in properties.items():
        assert inner.get("description"), f"{where}.{name} has no description: Annotated[…, sftrun.Meta(description=…)]"
        _check_schema(inner, f"{where}.{name}")
    for key in ("anyOf", "items", "prefixItems", "additionalProperties"):
        _check_schema(node.get(key), where)
