"""Quantises a frozen base with bitsandbytes, and dequantises it for merging."""

import logging
from typing import Any

import torch
import transformers

QUANTISED = ("Linear4bit", "Linear8bitLt")


def load_settings(quantisation: dict[str, Any], precision: str, device: torch.device) -> dict[str, Any]:
    """Returns the arguments of `from_pretrained`; a loaded model in 8 bits cannot be moved to another device."""
    return {"quantization_config": bnb_config(quantisation, precision), "device_map": {"": device}}


def bnb_config(quantisation: dict[str, Any], precision: str) -> Any:
    """Returns transformers' configuration for `BnbOptions`; `auto` is the precision of the computation."""
    _silence_warnings()
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


def _silence_warnings() -> None:
    """Silences a warning of 8-bit layers at every step, that they compute in fp16."""
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def disable_cpu_repacking(model: Any) -> None:
    """Stops bitsandbytes from repacking 4-bit weights for inference on CPUs with AVX512-BF16.

    Repacking rounds their scales to bf16 in place, also for the rest of the training, and fails for rows whose length
    is no multiple of 64 (0.50.2).
    """
    for module in model.modules():
        if is_quantised(module) and hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def is_quantised(module: Any) -> bool:
    """Returns True if a layer's weight is quantised to 4 or 8 bits."""
    return type(module).__name__ in QUANTISED


def dequantise(model: Any, dtype: torch.dtype) -> Any:
    """Returns the model with plain linear layers of the dequantised weights."""
    plain = model.dequantize(dtype=dtype)
    for key in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(plain.config, key):
            delattr(plain.config, key)
    return plain
