"""Writes the complete recipe, with every default, as resolved.yaml, and reads it back in each process."""

import hashlib
import io
import re
import sys
from pathlib import Path
from typing import Any

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter

from sftrun.errors import UserError
from sftrun.options import written
from sftrun.recipe.compose import LINE_BREAK, compose, scalar
from sftrun.recipe.document import Origin
from sftrun.recipe.model import Recipe, typed_recipe

SEAL = re.compile(r"# sha256 of the lines above: ([0-9a-f]{64})\n")
PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")


def resolved_yaml(recipe: Recipe) -> str:
    """Returns a recipe as YAML with every default, sealed by its hash; `${env:NAME}` stays as it is."""
    data = msgspec.to_builtins(recipe)
    del data["extends"]
    if data["train"]["batch_size"] == "auto":  # auto sets grad_accum
        del data["train"]["grad_accum"]
    text = _dump(data)
    return f"{text}# sha256 of the lines above: {_hash(text)}\n"


def unsealed(text: str) -> str | None:
    """Returns a resolved recipe without its seal; None if it is not what `resolved_yaml` wrote."""
    content, _, last = text.removesuffix("\n").rpartition("\n")
    found = SEAL.fullmatch(f"{last}\n")
    return f"{content}\n" if found and text.endswith("\n") and found[1] == _hash(f"{content}\n") else None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def written_yaml(recipe: Recipe) -> str:
    """Returns a recipe as YAML without its defaults, as a person would write it."""
    return _dump(written(recipe))


def from_resolved(text: str) -> Recipe:
    """Returns the recipe that `resolved_yaml` wrote; raises UserError for any other text."""
    content = unsealed(text)
    if content is None:
        raise UserError("resolved.yaml is not what the run wrote: it was edited, or is cut off")
    node, problems = compose(content, Origin("resolved.yaml", Path(), LINE_BREAK.split(content)))
    if problems or node is None:
        raise UserError(problems or "resolved.yaml is empty")
    return typed_recipe(node.plain())


class _Representer(SafeRepresenter):
    """Writes text so that `compose` reads the same text, and any value without aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> ScalarNode:
        plain = PLAIN.fullmatch(text) and scalar(text) == text
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_Representer.add_representer(str, _Representer.represent_text)


def _dump(data: dict[str, Any]) -> str:
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = sys.maxsize  # a folded line is hard to search for
    yaml.indent(mapping=2, sequence=4, offset=2)
    out = io.StringIO()
    yaml.dump(data, out)
    return out.getvalue()
