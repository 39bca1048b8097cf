"""Computes the bytes of weights and optimizer states from their storage formats."""

from typing import Any

import torch

BLOCK = 64  # weights that share a scale in 4 bits (Dettmers et al. 2023, QLoRA, section 3)


def tensor_bytes(tensor: torch.Tensor) -> int:
    """Returns the bytes of a tensor."""
    return tensor.numel() * tensor.element_size()


def weight_bytes(model: Any, quantisation: dict[str, Any] | None) -> int:
    """Returns the bytes of the weights in their storage formats, with buffers and quantisation scales."""
    frozen = quantised(model, quantisation)
    others = sum(map(tensor_bytes, model.parameters())) - sum(map(tensor_bytes, frozen))
    return others + sum(packed_bytes(each, quantisation) for each in frozen) + replicated_bytes(model, quantisation)


def quantised(model: Any, quantisation: dict[str, Any] | None) -> list[torch.Tensor]:
    """Returns the quantised weights: weights of frozen linear layers, without the head."""
    if quantisation is None:
        return []
    head = model.get_output_embeddings()
    linear = [each.weight for each in model.modules() if isinstance(each, torch.nn.Linear) and each is not head]
    return list({id(each): each for each in linear if not each.requires_grad}.values())


def packed_bytes(weight: torch.Tensor, quantisation: dict[str, Any] | None) -> int:
    """Returns the bytes of a quantised weight without its scales."""
    return weight.numel() // 2 if quantisation and quantisation["bits"] == 4 else weight.numel()


def replicated_bytes(model: Any, quantisation: dict[str, Any] | None) -> int:
    """Returns the bytes of buffers; with quantisation, also of scales and of one layer dequantised for its product.

    In 4 bits, each block of 64 weights has a scale of 32 bits; if scales are quantised too, one of 8 bits and 32 more
    for each 256 scales (QLoRA, Dettmers et al. 2023, section 3: 0.127 bits a weight). In 8 bits, each row of a matrix
    has a scale (LLM.int8(), Dettmers et al. 2022).
    """
    frozen = quantised(model, quantisation)
    scales = _scale_bytes(frozen, quantisation)
    return sum(map(tensor_bytes, model.buffers())) + scales + max(map(tensor_bytes, frozen), default=0)


def _scale_bytes(frozen: list[torch.Tensor], quantisation: dict[str, Any] | None) -> int:
    if quantisation is None or quantisation["bits"] == 8:
        return sum(4 * each.shape[0] for each in frozen)
    scales = sum(each.numel() for each in frozen) // BLOCK
    return scales + scales // 256 * 4 if quantisation["double_quant"] else 4 * scales


def state_bytes(optimizer: str, trained: list[torch.Tensor]) -> int:
    """Returns the bytes of the optimizer states.

    adamw: two moments a weight (Loshchilov and Hutter 2019). lion: one (Chen et al. 2023). adafactor: of a matrix a
    row and a column, else one a weight (Shazeer and Stern 2018). sgd without momentum: none. In 8 bits a state has a
    scale of 32 bits for each 256 weights (8-bit Optimizers, Dettmers et al. 2021).
    """
    if optimizer == "sgd":
        return 0
    if optimizer == "adafactor":
        return sum(4 * (sum(each.shape[-2:]) * (each[..., 0, 0].numel() if each.ndim > 2 else 1)) for each in trained)
    per_weight = 1 if "lion" in optimizer else 2
    if optimizer.endswith("8bit"):
        return per_weight * sum(each.numel() + 4 * (each.numel() // 256) for each in trained)
    return per_weight * sum(map(tensor_bytes, trained))
