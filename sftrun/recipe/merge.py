"""Merges a recipe or an override into its base."""

import msgspec

from sftrun.recipe.document import Node


def merge(base: Node, over: Node) -> Node:
    """Returns `base` with `over` on top: mappings are merged key by key, everything else is replaced.

    A component is replaced as a whole if its name changes, because its options mean nothing to another component.
    """
    base, over = _long_form(base, over), _long_form(over, base)
    if not isinstance(base.value, dict) or not isinstance(over.value, dict) or _other_component(base, over):
        return over
    values = dict(base.value)
    for key, node in over.value.items():
        values[key] = merge(values[key], node) if key in values else node
    top = base if over.origin.is_override else over  # an override adds to a mapping and does not move its place
    return msgspec.structs.replace(top, value=values, keys={**base.keys, **over.keys})


def _long_form(node: Node, other: Node) -> Node:
    """Returns a component's bare name as the mapping that it is short for, if the other side is such a mapping."""
    if not isinstance(node.value, str) or not isinstance(other.value, dict) or not other.value.keys() & {"use", "with"}:
        return node
    return msgspec.structs.replace(node, value={"use": node}, keys={"use": node.place}, raw=None)


def _other_component(base: Node, over: Node) -> bool:
    before, after = base.value.get("use"), over.value.get("use")
    return before is not None and after is not None and before.value != after.value
