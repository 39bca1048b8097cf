"""Checks on the model itself that sequences in one packed row do not see each other."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

import sftrun

LENGTHS = (9, 1, 12)
# largest difference between packed and separate logits, as a share of the largest logit; rounding stays below it
BOUNDS = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}


def check_isolation(model: Any, precision: str) -> None:
    """Raises UserError if packed sequences leak into each other, or if the model gets their positions wrong.

    Three short random sequences run packed and separately. The logits must agree. The gradient of later sequences with
    respect to the embeddings of the first must be exactly zero, which detects leaks smaller than rounding errors. The
    model's mode, its gradients and the random state do not change.
    """
    generator = torch.Generator().manual_seed(0)
    words = model.config.get_text_config().vocab_size  # a sharded model may not hold the weight itself
    sequences = [torch.randint(words, (length,), generator=generator) for length in LENGTHS]
    with eval_mode(model), autocast(precision, model.device):
        with torch.no_grad():
            apart = torch.cat([_logits(model, each) for each in sequences])
        try:
            packed, leak = _packed(model, sequences)
        except Exception as error:  # a model may fail in any way on a row that it cannot read
            raise packing_error(f"reading a packed row fails: {type(error).__name__}: {error}") from error
    if leak:
        raise packing_error("a sequence sees its neighbour (there is a gradient from one to the other)")
    difference, largest = float((packed - apart).abs().max()), float(apart.abs().max())
    if not difference <= BOUNDS[precision] * largest:  # also true for NaN
        reason = f"packed sequences have other logits than separate ones (they differ by {difference / largest:.1e})"
        raise packing_error(reason)


def packing_error(reason: str) -> sftrun.UserError:
    """Returns the error for a model that cannot be trained on packed rows."""
    message = f"this model cannot be trained on packed rows: {reason}"
    hint = "set packing: {strategy: none}"
    return sftrun.UserError(sftrun.Problem(message, path=("packing", "strategy"), hint=hint))


def _packed(model: Any, sequences: list[torch.Tensor]) -> tuple[torch.Tensor, bool]:
    """Returns the logits of a packed row, and True if later sequences depend on the first one."""
    embedded: list[torch.Tensor] = []

    def capture(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[0]

    hook = model.get_input_embeddings().register_forward_hook(capture)
    try:
        with torch.enable_grad():
            logits = _logits(model, *sequences)
            first = len(sequences[0])
            (gradient,) = torch.autograd.grad(logits[first:].square().sum(), embedded[0])
    finally:
        hook.remove()
    return logits.detach(), bool((gradient[0, :first] != 0).any())


def _logits(model: Any, *sequences: torch.Tensor) -> torch.Tensor:
    """Returns the logits of a row ([tokens, vocabulary]), with the same inputs as in training."""
    ids = torch.cat(sequences)[None].to(model.device)
    positions = torch.cat([torch.arange(len(each)) for each in sequences])[None].to(model.device)
    logits: torch.Tensor = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    return logits[0].float()


@contextlib.contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """Switches dropout off, and restores the mode and the random state on exit."""
    training = model.training
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        model.eval()
        try:
            yield
        finally:
            model.train(training)


def autocast(precision: str, device: torch.device) -> Any:
    """Returns a context that computes in the number format of the training."""
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, half) if half else contextlib.nullcontext()
