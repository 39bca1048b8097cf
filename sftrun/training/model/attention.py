"""Attention within each sequence of a packed row, without a mask of length × length.

Registered with transformers under a name of its own. A model asks for its mask once a forward pass; where the row is
packed, it is given `Sequences` in its place, and hands them to each layer's attention as it would the mask: any model
that takes masks from transformers works, also when activations are computed again. Anything else (padded batches,
caches, generation) goes to transformers' own sdpa.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sftrun-packed"
NOT_IN_SDPA = ("softcap", "s_aux", "position_bias")


@dataclass(frozen=True)
class Sequences:
    """The sequences of a packed row: their lengths, where they start ([n + 1], int32), how far back a token sees.

    `band` is the mask of the longest one, and its corners those of the others, where any is longer than the window.
    """

    lengths: list[int]
    starts: torch.Tensor
    window: int | None
    band: torch.Tensor | None

    def mask(self, length: int) -> torch.Tensor | None:
        """The mask of a sequence of this length; None where it is plainly causal."""
        if self.band is None or self.window is None or length <= self.window:
            return None
        return self.band[None, None, :length, :length]


def isolate(model: Any, flash: bool = True) -> bool:
    """Gives a model this attention; False where it has only its own, whose mask is length × length.

    Without `flash`, the package flash-attn is left alone where it is installed.
    """
    AttentionInterface.register(NAME, functools.partial(attend, flash=flash))
    AttentionMaskInterface.register(NAME, mask)
    capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    if capped or not model._supports_sdpa:  # softcap or sinks, which sdpa has not
        model.set_attn_implementation("eager")
        return False
    model.set_attn_implementation(NAME)
    return bool(model.config._attn_implementation == NAME)


def mask(**asked: Any) -> Any:
    """What transformers asks of a mask function: `Sequences` for a packed row, else the mask of sdpa."""
    row = asked["attention_mask"] is None and asked["batch_size"] == 1 and asked["q_length"] == asked["kv_length"]
    plain = asked.get("allow_is_causal_skip", True) or asked.get("use_vmap", False)
    found = _sequences(asked) if row and not plain else None
    return sdpa_mask(**asked) if found is None else found


def _sequences(asked: dict[str, Any]) -> Sequences | None:
    """Where the mask says that a token does not see the one before it, a sequence starts."""
    length, device = asked["q_length"], asked["device"]
    index = torch.arange(length, device=device)
    zero = index[:1]  # a vector: the value of a scalar is read back, to be an index
    sees_previous = asked["mask_function"](zero, zero, index[1:], index[:-1]).cpu()  # the one wait for a GPU
    inner = (~sees_previous).nonzero().flatten() + 1
    if not len(inner):
        return None
    starts = torch.cat([torch.tensor([0]), inner, torch.tensor([length])])
    lengths = starts.diff().tolist()
    window, there = asked.get("local_size"), starts.to(device, torch.int32, non_blocking=True)
    return Sequences(lengths, there, window, _band(max(lengths), window, device))


def _band(length: int, window: int | None, device: Any) -> torch.Tensor | None:
    if window is None or length <= window:
        return None
    behind = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (behind >= 0) & (behind < window)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # lengths differ: a compiled layer would be compiled anew
def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    flash: bool = True,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers asks of an attention function; query, key, value are [batch, heads, length, size]."""
    if not isinstance(attention_mask, Sequences):
        plain: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **more)
        return plain
    unknown = [name for name in NOT_IN_SDPA if more.get(name) is not None]
    if unknown:
        raise ValueError(f"packed attention does not know {', '.join(unknown)}")
    kernel = _kernel(flash) if query.is_cuda else None
    if kernel:
        query, key, value = (_half(tensor) for tensor in (query, key, value))
        if _fits(query, value, more.get("dropout", 0.0)):
            return kernel(query, key, value, attention_mask, more.get("scaling")), None
    parts = zip(*(torch.split(tensor, attention_mask.lengths, 2) for tensor in (query, key, value)), strict=True)
    made = [sdpa_attention_forward(module, *part, attention_mask.mask(part[0].shape[2]), **more)[0] for part in parts]
    return torch.cat(made, 1), None


def _half(tensor: torch.Tensor) -> torch.Tensor:
    """In the number format of autocast, which does not reach kernels of others."""
    return tensor.to(torch.get_autocast_dtype("cuda")) if torch.is_autocast_enabled("cuda") else tensor


def _fits(query: torch.Tensor, value: torch.Tensor, dropout: float) -> bool:
    size, half = query.shape[-1], query.dtype in (torch.bfloat16, torch.float16)
    return half and size == value.shape[-1] <= 256 and size % 8 == 0 and not dropout


Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Sequences, float | None], torch.Tensor]


def modern() -> bool:
    """Whether there is a GPU that these kernels are written for: NVIDIA's since Ampere."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


def named(flash: bool, precision: str) -> str:
    """What computes packed rows on this machine."""
    if precision == "fp32" or _kernel(flash) is None:
        return "sdpa"
    return "flash-attn" if flash else "torch's varlen"


@functools.cache
def _kernel(wanted: bool) -> Kernel | None:
    """One kernel for all sequences at once, on a GPU: flash-attn's where wanted and installed, else torch's own."""
    if not modern():
        return None
    if not wanted:
        return _torch_kernel()
    try:
        from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]
    except ImportError:
        return _torch_kernel()

    def flash(q: Any, k: Any, v: Any, row: Sequences, scaling: float | None) -> torch.Tensor:
        longest, window = max(row.lengths), (-1, -1) if row.window is None else (row.window - 1, 0)
        bounds = (row.starts, row.starts, longest, longest)
        settings = {"softmax_scale": scaling, "causal": True, "window_size": window}
        made: torch.Tensor = flash_attn_varlen_func(_flat(q), _flat(k), _flat(v), *bounds, **settings)
        return made[None]

    return flash


def _torch_kernel() -> Kernel | None:
    try:
        from torch.nn.attention import varlen
    except ImportError:
        return None
    attention: Any = varlen.varlen_attn
    if not {"window_size", "enable_gqa"} <= set(inspect.signature(attention).parameters):  # an older torch
        return None

    def kernel(q: Any, k: Any, v: Any, row: Sequences, scaling: float | None) -> torch.Tensor:
        longest, window = max(row.lengths), (-1, 0) if row.window is None else (row.window - 1, 0)
        bounds = (row.starts, row.starts, longest, longest)
        settings = {"scale": scaling, "window_size": window, "enable_gqa": q.shape[1] != k.shape[1]}
        made: torch.Tensor = attention(_flat(q), _flat(k), _flat(v), *bounds, **settings)
        return made[None]

    return kernel


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """[1, heads, length, size] as [length, heads, size]."""
    return tensor[0].transpose(0, 1)
