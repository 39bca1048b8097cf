"""Quantisation of a frozen base by bitsandbytes: its configuration, and what only a quantised model has."""

import logging
from typing import Any

import torch
import transformers

QUANTISED = ("Linear4bit", "Linear8bitLt")


def settings(quantisation: dict[str, Any], precision: str, where: torch.device) -> dict[str, Any]:
    """What `from_pretrained` is given: a model in 8 bits cannot be moved once it is loaded."""
    return {"quantization_config": config(quantisation, precision), "device_map": {"": where}}


def config(quantisation: dict[str, Any], precision: str) -> Any:
    """transformers' configuration for what `BnbOptions` says, with `auto` as the precision of the computation."""
    _quiet()
    if quantisation["bits"] == 8:
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    compute = quantisation["compute_dtype"]
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantisation["type"],
        bnb_4bit_use_double_quant=quantisation["double_quant"],
        bnb_4bit_compute_dtype=_dtype(precision if compute == "auto" else compute),
        bnb_4bit_quant_storage=_dtype(quantisation["storage_dtype"]),
    )


def _dtype(name: str) -> torch.dtype:
    names = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "uint8": torch.uint8}
    return names[name]


def _quiet() -> None:
    """8-bit layers say at every step that they compute in fp16."""
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def keep_as_they_are(model: Any) -> None:
    """Stops bitsandbytes from packing 4-bit weights anew for the inference on CPUs that have AVX512-BF16.

    It would round their scales to bf16, in place and for the training that goes on afterwards, and it fails for rows
    that are no multiple of 64 (0.50.2).
    """
    for module in model.modules():
        if is_quantised(module) and hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def is_quantised(module: Any) -> bool:
    """Whether a layer's weight is held in 4 or 8 bits."""
    return type(module).__name__ in QUANTISED


def dequantised(model: Any, dtype: torch.dtype) -> Any:
    """The same model with plain linear layers of the weights that its 4 or 8 bits stand for."""
    plain = model.dequantize(dtype=dtype)
    for key in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(plain.config, key):
            delattr(plain.config, key)
    return plain
