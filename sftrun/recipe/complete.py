"""The typed recipe with every default written out, also the defaults of component options."""

from typing import Any

import msgspec

from sftrun.errors import Problem, RecipePath, UserError
from sftrun.options import Use, parse, schema
from sftrun.recipe.model import COMPONENT_KEYS, Recipe
from sftrun.recipe.train_options import TrainOptions
from sftrun.recipe.walk import kind_of
from sftrun.registry import Registry


def recipe(given: Recipe, registry: Registry) -> Recipe:
    """A valid recipe with all options of all components; raises UserError where an options class refuses them."""
    changes: dict[str, Any] = {}
    if given.train.batch_size == "auto":  # what a recipe that this one extends says of it has no meaning any more
        changes["train"] = msgspec.structs.replace(given.train, grad_accum=TrainOptions().grad_accum)
    for name, kind in COMPONENT_KEYS.items():
        value = getattr(given, name)
        if isinstance(value, list):
            changes[name] = [_use(kind, item, (name, index), registry) for index, item in enumerate(value)]
        else:
            changes[name] = _use(kind, value, (name,), registry)
    return parse(_plain(msgspec.structs.replace(given, **changes)), Recipe)


def _plain(value: Any) -> Any:
    """As after a round trip through text: a tuple is a list, and a default of 3 for a number, parsed again, 3.0."""
    return msgspec.json.decode(msgspec.json.encode(value))


def _use(kind: str, use: Use, path: RecipePath, registry: Registry) -> Use:
    options = registry.get(kind, use.use).options
    if options is None:
        return use
    try:
        data = _plain(parse(_plain(parse(use.with_, options)), options))
    except UserError as error:
        raise UserError(Problem(error.problems[0].message, path=(*path, "with"))) from None
    for name, about in schema(options)["properties"].items():
        inner = kind_of(about)
        if inner:
            data[name] = _nested(inner, data[name], (*path, "with", name), registry)
    return Use(use=use.use, with_=data)


def _nested(kind: str, value: Any, path: RecipePath, registry: Registry) -> Any:
    """A component among the options of another, or a list of them."""
    if value is None:
        return None
    if isinstance(value, list):
        return [_nested(kind, item, (*path, index), registry) for index, item in enumerate(value)]
    use = Use(use=value) if isinstance(value, str) else Use(use=value["use"], with_=value.get("with", {}))
    return _plain(_use(kind, use, path, registry))
