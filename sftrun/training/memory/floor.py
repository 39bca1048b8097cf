"""What a process that trains has in memory before it sees a row: libraries, the tokenizer, kernels."""

import functools
import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers

from sftrun import tiny

CONTEXT = 600 * 2**20  # of a CUDA context with its kernels, outside of torch's allocator; a usual value, not measured
UNKNOWN = 560 * 2**20  # where the system does not say what this process has
STATUS = Path("/proc/self/status")
IMPORTED = ("sftrun.training.train", "torch.utils.tensorboard", "deepspeed")  # by the trainer, where it is


@functools.cache  # read once: what estimates leave behind is not part of it
def floor(tokenizer: Path) -> int:
    """Bytes of this process once it has done what each training does first; of a GPU, those of its context."""
    if torch.cuda.is_available():
        return CONTEXT
    for name in IMPORTED:
        if find_spec(name):
            import_module(name)
    transformers.AutoTokenizer.from_pretrained(tokenizer)
    _step()
    return _resident()


def _step() -> None:
    """One step of the embedded model: maps the code of kernels, of which there are more than 30 MB."""
    model = transformers.AutoModelForCausalLM.from_config(transformers.Qwen3Config(**tiny.ARCHITECTURE))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.zeros(1, 64, dtype=torch.long)
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    optimizer.step()


def _resident() -> int:
    status = STATUS.read_text("utf-8") if os.path.exists(STATUS) else ""
    sizes = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")]
    return int(sizes[0]) * 1024 if sizes else UNKNOWN
