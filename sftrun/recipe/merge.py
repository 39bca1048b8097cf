"""What a recipe, or an override, makes of the recipe below it."""

import msgspec

from sftrun.recipe.document import Node


def merge(base: Node, over: Node) -> Node:
    """`over` on top of `base`: mappings deep-merged, all else replaced.

    A component is replaced as a whole when its name changes: options of one mean nothing to another.
    """
    base, over = _long_form(base, over), _long_form(over, base)
    if not isinstance(base.value, dict) or not isinstance(over.value, dict) or _other_component(base, over):
        return over
    values = dict(base.value)
    for key, node in over.value.items():
        values[key] = merge(values[key], node) if key in values else node
    top = base if over.origin.is_override else over  # an override adds to a mapping, it does not write one
    return msgspec.structs.replace(top, value=values, keys={**base.keys, **over.keys})


def _long_form(node: Node, other: Node) -> Node:
    """A component's bare name as the mapping it is short for, where the other side is such a mapping."""
    if not isinstance(node.value, str) or not isinstance(other.value, dict) or not other.value.keys() & {"use", "with"}:
        return node
    return msgspec.structs.replace(node, value={"use": node}, keys={"use": node.place}, raw=None)


def _other_component(base: Node, over: Node) -> bool:
    ours, theirs = base.value.get("use"), over.value.get("use")
    return ours is not None and theirs is not None and ours.value != theirs.value
