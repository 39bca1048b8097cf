"""Shows, on the model that is about to be trained, that sequences in one row do not see each other."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

import sftrun

LENGTHS = (9, 1, 12)
# largest difference of logits, packed against apart, as a share of the largest logit: what rounding may do
BOUNDS = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}


def check(model: Any, precision: str) -> None:
    """Raises UserError for a model whose sequences leak into each other, or that reads their positions wrongly.

    Three short random sequences are read packed and apart. The logits must agree, and the gradient of the later ones
    with respect to the embeddings of the first must be exactly zero: that shows a leak too small for their rounding.
    Neither the model's mode, nor its gradients, nor the random state is changed.
    """
    generator = torch.Generator().manual_seed(0)
    words = model.config.get_text_config().vocab_size  # of a sharded model, the weight itself may be elsewhere
    sequences = [torch.randint(words, (length,), generator=generator) for length in LENGTHS]
    with quiet(model), computing_in(precision, model.device):
        with torch.no_grad():
            apart = torch.cat([_logits(model, each) for each in sequences])
        try:
            packed, leak = _packed(model, sequences)
        except Exception as error:  # whatever a model does with a row that it cannot read
            raise refusal(f"reading a packed row fails: {type(error).__name__}: {error}") from error
    if leak:
        raise refusal("a sequence sees its neighbour (there is a gradient from one to the other)")
    difference, largest = float((packed - apart).abs().max()), float(apart.abs().max())
    if not difference <= BOUNDS[precision] * largest:  # also where it is no number
        raise refusal(f"sequences read otherwise in one row than apart (logits differ by {difference / largest:.1e})")


def refusal(reason: str) -> sftrun.UserError:
    """Packing does not work with this model, and what to do."""
    message = f"this model cannot be trained on packed rows: {reason}"
    hint = "set packing: {strategy: none}"
    return sftrun.UserError(sftrun.Problem(message, path=("packing", "strategy"), hint=hint))


def _packed(model: Any, sequences: list[torch.Tensor]) -> tuple[torch.Tensor, bool]:
    """The logits of one row, and whether those of the later sequences depend on the first one."""
    embedded: list[torch.Tensor] = []

    def catch(_module: Any, _given: Any, made: torch.Tensor) -> torch.Tensor:
        embedded.append(made.detach().requires_grad_())
        return embedded[0]

    hook = model.get_input_embeddings().register_forward_hook(catch)
    try:
        with torch.enable_grad():
            logits = _logits(model, *sequences)
            first = len(sequences[0])
            (slope,) = torch.autograd.grad(logits[first:].square().sum(), embedded[0])
    finally:
        hook.remove()
    return logits.detach(), bool((slope[0, :first] != 0).any())


def _logits(model: Any, *sequences: torch.Tensor) -> torch.Tensor:
    """Logits of a row ([tokens, vocabulary]), given as training gives it."""
    ids = torch.cat(sequences)[None].to(model.device)
    positions = torch.cat([torch.arange(len(each)) for each in sequences])[None].to(model.device)
    logits: torch.Tensor = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    return logits[0].float()


@contextlib.contextmanager
def quiet(model: Any) -> Iterator[None]:
    """Without dropout, and with the random state put back."""
    training = model.training
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        model.eval()
        try:
            yield
        finally:
            model.train(training)


def computing_in(precision: str, device: torch.device) -> Any:
    """The number format of training."""
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, half) if half else contextlib.nullcontext()
