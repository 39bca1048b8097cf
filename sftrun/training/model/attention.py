"""Attention within each sequence of a packed row, without a mask of length × length.

It is registered with transformers under its own name. A model asks for its mask once a forward pass. For a packed row
it gets `Sequences` instead, and passes them to each layer's attention like a mask. So every model that takes masks
from transformers works, also with gradient checkpointing. Everything else (padded batches, caches, generation) goes to
transformers' own sdpa.
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
    """The sequences of a packed row: lengths, starts ([n + 1], int32), and the attention window.

    `band` is the mask of the longest sequence, if one is longer than the window; its corners are the masks of shorter
    sequences.
    """

    lengths: list[int]
    starts: torch.Tensor
    window: int | None
    band: torch.Tensor | None

    def mask(self, length: int) -> torch.Tensor | None:
        """Returns the mask of a sequence of this length; None if it is causal only."""
        if self.band is None or self.window is None or length <= self.window:
            return None
        return self.band[None, None, :length, :length]


def isolate(model: Any, flash: bool = True) -> bool:
    """Sets this attention; returns False for a model with its own attention, whose mask is length × length.

    With `flash=False`, the package flash-attn is not used.
    """
    AttentionInterface.register(NAME, functools.partial(attend, flash=flash))
    AttentionMaskInterface.register(NAME, mask)
    capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    if capped or not model._supports_sdpa:  # softcap or sinks, which sdpa does not support
        model.set_attn_implementation("eager")
        return False
    model.set_attn_implementation(NAME)
    return bool(model.config._attn_implementation == NAME)


def mask(**request: Any) -> Any:
    """Implements transformers' mask function: returns `Sequences` for a packed row, else the mask of sdpa."""
    row = request["attention_mask"] is None and request["batch_size"] == 1
    row = row and request["q_length"] == request["kv_length"]
    plain = request.get("allow_is_causal_skip", True) or request.get("use_vmap", False)
    sequences = _find_sequences(request) if row and not plain else None
    return sdpa_mask(**request) if sequences is None else sequences


def _find_sequences(request: dict[str, Any]) -> Sequences | None:
    """Finds sequences in a mask: a token that does not see the previous token starts one."""
    length, device = request["q_length"], request["device"]
    index = torch.arange(length, device=device)
    zero = index[:1]  # a vector: using a scalar as an index would sync the GPU
    sees_previous = request["mask_function"](zero, zero, index[1:], index[:-1]).cpu()  # the only GPU sync
    inner = (~sees_previous).nonzero().flatten() + 1
    if not len(inner):
        return None
    starts = torch.cat([torch.tensor([0]), inner, torch.tensor([length])])
    lengths = starts.diff().tolist()
    window = request.get("local_size")
    device_starts = starts.to(device, torch.int32, non_blocking=True)
    return Sequences(lengths, device_starts, window, _band(max(lengths), window, device))


def _band(length: int, window: int | None, device: Any) -> torch.Tensor | None:
    if window is None or length <= window:
        return None
    behind = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (behind >= 0) & (behind < window)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # lengths differ, and torch would recompile the layer
def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    flash: bool = True,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Implements transformers' attention function; query, key, value are [batch, heads, length, size]."""
    if not isinstance(attention_mask, Sequences):
        plain: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **more)
        return plain
    unknown = [name for name in NOT_IN_SDPA if more.get(name) is not None]
    if unknown:
        raise ValueError(f"packed attention does not support {', '.join(unknown)}")
    kernel = _kernel(flash) if query.is_cuda else None
    if kernel:
        query, key, value = (_cast_to_autocast(tensor) for tensor in (query, key, value))
        if _is_supported(query, value, more.get("dropout", 0.0)):
            return kernel(query, key, value, attention_mask, more.get("scaling")), None
    parts = zip(*(torch.split(tensor, attention_mask.lengths, 2) for tensor in (query, key, value)), strict=True)
    outputs = [
        sdpa_attention_forward(module, *part, attention_mask.mask(part[0].shape[2]), **more)[0] for part in parts
    ]
    return torch.cat(outputs, 1), None


def _cast_to_autocast(tensor: torch.Tensor) -> torch.Tensor:
    """Casts to the autocast dtype: autocast does not apply to external kernels."""
    return tensor.to(torch.get_autocast_dtype("cuda")) if torch.is_autocast_enabled("cuda") else tensor


def _is_supported(query: torch.Tensor, value: torch.Tensor, dropout: float) -> bool:
    size, half = query.shape[-1], query.dtype in (torch.bfloat16, torch.float16)
    return half and size == value.shape[-1] <= 256 and size % 8 == 0 and not dropout


Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Sequences, float | None], torch.Tensor]


def has_ampere_gpu() -> bool:
    """Returns True if the GPU supports these kernels: NVIDIA GPUs since Ampere do."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


def kernel_name(flash: bool, precision: str) -> str:
    """Returns the name of the kernel that computes packed rows on this machine."""
    if precision == "fp32" or _kernel(flash) is None:
        return "sdpa"
    return "flash-attn" if flash else "torch's varlen"


@functools.cache
def _kernel(wanted: bool) -> Kernel | None:
    """Returns a GPU kernel for all sequences at once: flash-attn's if wanted and installed, else torch's own."""
    if not has_ampere_gpu():
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
        output: torch.Tensor = flash_attn_varlen_func(_flatten(q), _flatten(k), _flatten(v), *bounds, **settings)
        return output[None]

    return flash


def _torch_kernel() -> Kernel | None:
    try:
        from torch.nn.attention import varlen
    except ImportError:
        return None
    attention: Any = varlen.varlen_attn
    known = inspect.signature(attention).parameters
    if "window_size" not in known:  # before torch 2.11
        return None

    def kernel(q: Any, k: Any, v: Any, row: Sequences, scaling: float | None) -> torch.Tensor:
        longest, window = max(row.lengths), (-1, 0) if row.window is None else (row.window - 1, 0)
        bounds = (row.starts, row.starts, longest, longest)
        settings = {"scale": scaling, "window_size": window}
        if "enable_gqa" in known:
            settings["enable_gqa"] = q.shape[1] != k.shape[1]
        else:  # torch 2.11 wants as many heads of keys as of queries
            k, v = (tensor.repeat_interleave(q.shape[1] // tensor.shape[1], 1) for tensor in (k, v))
        output: torch.Tensor = attention(_flatten(q), _flatten(k), _flatten(v), *bounds, **settings)
        return output[None]

    return kernel


def _flatten(tensor: torch.Tensor) -> torch.Tensor:
    """Reshapes [1, heads, length, size] to [length, heads, size]."""
    return tensor[0].transpose(0, 1)
