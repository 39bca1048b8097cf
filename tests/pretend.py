"""A device that is none: its tensors lie on the CPU, refuse to meet those that say so, and count who waits for them.

What only a GPU would show can be tested with it anywhere: a tensor that was made on the CPU in the middle of a step, or
reading a value back, for which a GPU would have to end its work. torch has a place for devices of others; this is one.
"""

from collections import Counter

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretend"
WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero")
MOVES = ("aten::copy_", "aten::_to_copy")

# before the first backward pass, after which torch knows all devices that there are: so in a process of its own
backend_registration._setup_privateuseone_for_python_backend(NAME)


class There(torch.Tensor):
    """A tensor of the device."""

    @staticmethod
    def __new__(cls, held):
        same = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, held.shape, device=f"{NAME}:0", **same)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} outside of the device")


class Device(TorchDispatchMode):
    """While it lasts, `device="pretend"` is one; `waits` counts what a GPU would have to end its work for."""

    def __init__(self):
        super().__init__()
        self.waits = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), func.name()
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        there = {id(each.held): each for each in given if isinstance(each, There)}
        wanted = kwargs.get("device")
        if there and not name.startswith(MOVES):
            strangers = [tuple(each.shape) for each in given if not isinstance(each, There) and each.dim()]
            assert not strangers, f"{name} mixes tensors of the device with some of the CPU, {strangers}"
        back = torch.device(wanted).type == "cpu" if wanted is not None else False
        if there and (name.startswith(WAITS) or (name.startswith(MOVES) and back)):
            self.waits[name] += 1
        stays = bool(there) if wanted is None else not back
        if wanted is not None:
            kwargs["device"] = torch.device("cpu")
        made = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        if not stays or name.startswith("aten::_local_scalar_dense"):
            return made
        return tree_map(lambda each: _there(each, there), made)


def _there(each, known):
    """A tensor of the device for one of the CPU; where an operation has changed a tensor in place, that one."""
    if not isinstance(each, torch.Tensor):
        return each
    return known[id(each)] if id(each) in known else There(each)


def _held(each):
    return each.held if isinstance(each, There) else each
