"""Computes a language model's head and its cross-entropy on trained positions only.

Logits of all positions are the largest tensors in training: 4,096 tokens of a vocabulary of 151,936 are 2.5 GB in
fp32, and their softmax takes the same again. Here the model's own head, with scaling, softcap and adapters, gets the
hidden states of trained positions only, in parts of at most 512 MB of logits. The gradient follows directly from the
softmax, so the backward pass keeps no tensor of that size.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import peft
import torch

import sftrun
import sftrun.data

PART_BYTES = 2**29  # bytes of fp32 logits in a part; less makes matrices too thin for a GPU, more saves no time

Tail = Callable[[torch.Tensor], torch.Tensor]
"""Maps hidden states ([positions, hidden]) to logits ([positions, vocabulary])."""
Kernel = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Maps hidden states and target tokens ([positions]) to the sum of negative log-likelihoods."""


def patch_forward(model: Any, kernel: Kernel | None = None, parts: bool = True) -> None:
    """Adds the argument `scored=labels` ([rows, tokens]) to a causal language model's forward.

    With `scored`, the model returns {"loss": …, "correct": …, "aux_loss": …}: the sum of negative log-likelihoods over
    trained tokens; without gradients, the number of tokens that were argmax; the router loss of a mixture of experts,
    if requested. `scored_at`, from `collate_scored`, avoids a GPU sync. Without `scored`, the forward is unchanged. The
    computation is inside the model's forward, so wrappers still work.

    A `kernel` replaces the head if gradients are computed. With `parts=False` the logits of all trained positions are
    computed at once, and autograd computes their gradient: processes that share the head need that.
    """
    inner = _inner(model)
    summed_loss: Any = loss_in_parts if parts else loss_at_once
    if kernel:
        summed_loss = lambda rows, tokens, *_: kernel(rows, tokens)  # noqa: E731
    original = getattr(inner.forward, "original", inner.forward)

    @functools.wraps(type(inner).forward)
    def forward(
        *args: Any, scored: torch.Tensor | None = None, scored_at: torch.Tensor | None = None, **inputs: Any
    ) -> Any:
        if scored is None:
            return original(*args, **inputs)
        at = positions(scored) if scored_at is None else scored_at
        return _forward_scored(inner, original, summed_loss, (scored, at), (args, inputs))

    forward.original = original  # type: ignore[attr-defined]
    inner.forward = forward


def positions(labels: torch.Tensor) -> torch.Tensor:
    """Returns the flat indices of positions whose next token is trained."""
    rows, columns = (labels[:, 1:] != sftrun.data.IGNORED).nonzero(as_tuple=True)
    return rows * labels.shape[1] + columns


def collate_scored(collate: Callable[[Any], dict[str, Any]], examples: Any) -> dict[str, Any]:
    """Collates a batch, and adds the trained positions while the batch is on the CPU."""
    batch = collate(examples)
    return {**batch, "scored_at": positions(batch["labels"])}


def score(model: Any, batch: dict[str, torch.Tensor]) -> tuple[float, int]:
    """Returns the sum of negative log-likelihoods of a batch's labels, and the number of labels that were argmax."""
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    output = model(**inputs, scored=batch["labels"], use_cache=False)
    return output["loss"].item(), int(output["correct"])


def _inner(model: Any) -> Any:
    return model.get_base_model() if isinstance(model, peft.PeftModel) else model


def _forward_scored(inner: Any, original: Any, summed_loss: Any, scored: Any, call: Any) -> dict[str, Any]:
    labels, at = scored
    rest, hidden, tail = split_head(inner, original, *call)
    rows = hidden.flatten(0, 1).index_select(0, at)
    tokens = labels.flatten()[at + 1]
    output: dict[str, Any] = {}
    if torch.is_grad_enabled():
        output["loss"] = summed_loss(rows, tokens, tail, rest.logits)
    else:
        size = positions_per_part(rest.logits.shape[-1])
        output["loss"], output["correct"] = loss_and_correct(rows, tokens, tail, size)
    if getattr(rest, "aux_loss", None) is not None:
        output["aux_loss"] = rest.aux_loss
    return output


def loss_in_parts(rows: torch.Tensor, tokens: torch.Tensor, tail: Tail, logits: torch.Tensor) -> torch.Tensor:
    """Returns the summed loss; the gradient of each part is computed in the forward pass.

    `logits` are empty (no position): their graph leads to the head's weights.
    """
    weights = [] if tail is _identity else trained_leaves(logits)
    size = positions_per_part(logits.shape[-1])
    loss: torch.Tensor = SummedLoss.apply(rows, tokens, tail, size, *weights)  # type: ignore[no-untyped-call]
    return loss


def loss_at_once(rows: torch.Tensor, tokens: torch.Tensor, tail: Tail, logits: torch.Tensor) -> torch.Tensor:
    """Returns the summed loss; autograd computes the gradient."""
    return torch.nn.functional.cross_entropy(tail(rows).float(), tokens, reduction="sum")


def positions_per_part(vocabulary: int) -> int:
    """Returns the number of positions whose logits are computed together."""
    return max(PART_BYTES // (4 * vocabulary), 1)


def _identity(logits: torch.Tensor) -> torch.Tensor:
    return logits


def split_head(inner: Any, original: Any, args: Any, inputs: dict[str, Any]) -> tuple[Any, torch.Tensor, Tail]:
    """Runs a model up to its head; returns its output for no position, the hidden states, and the head as a function.

    The model's own forward runs with a stand-in for its backbone, so everything the model does to its logits is done.
    The first stand-in returns no position; for each part, another one returns the hidden states of the part.
    """
    name = inner.base_model_prefix
    backbone = getattr(inner, name, None)
    if not isinstance(backbone, torch.nn.Module):
        rest = original(*args, **inputs)  # the head cannot be called separately: logits of all positions
        return rest, rest.logits, _identity
    outputs: list[Any] = []

    def run(*args: Any, **inputs: Any) -> Any:
        outputs.append(backbone(*args, **inputs))
        return _with_hidden(outputs[0], outputs[0].last_hidden_state[:, :0].detach())

    with _replaced(inner, name, run):
        rest = original(*args, **inputs)

    def tail(part: torch.Tensor) -> torch.Tensor:
        with _replaced(inner, name, lambda *_, **__: type(outputs[0])(last_hidden_state=part[None])):
            logits: torch.Tensor = original(inputs_embeds=part[None], use_cache=False).logits
        return logits.squeeze(0)  # logits[0] would copy them once more for the gradient

    return rest, outputs[0].last_hidden_state, tail


def _with_hidden(output: Any, hidden: torch.Tensor) -> Any:
    return type(output)(**{**output, "last_hidden_state": hidden})


class _StandIn(torch.nn.Module):
    """A stand-in for a module: it has the module's attributes and another forward."""

    def __init__(self, module: torch.nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.__dict__["module"] = module
        self.forward = forward

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["module"], name)


@contextlib.contextmanager
def _replaced(owner: Any, name: str, forward: Callable[..., Any]) -> Iterator[None]:
    module = owner._modules[name]
    owner._modules[name] = _StandIn(module, forward)
    try:
        yield
    finally:
        owner._modules[name] = module


def trained_leaves(output: torch.Tensor) -> list[torch.Tensor]:
    """Returns the trained parameters in a tensor's graph, wherever the head gets them from."""
    leaves: dict[int, torch.Tensor] = {}
    seen: set[Any] = set()
    queue = [output.grad_fn]
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves[id(node.variable)] = node.variable
        queue += [each for each, _ in node.next_functions]
    return list(leaves.values())


def _parts(
    hidden: torch.Tensor, targets: torch.Tensor, tail: Tail, size: int
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yields parts of `size` positions: their slice, hidden states, logits and target tokens."""
    for start in range(0, max(len(hidden), 1), size):
        at = slice(start, start + size)
        part = hidden[at].detach().requires_grad_(hidden.requires_grad)
        yield at, part, tail(part), targets[at]


def loss_and_correct(
    hidden: torch.Tensor, targets: torch.Tensor, tail: Tail, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the sum of negative log-likelihoods, and the number of tokens that were argmax."""
    loss = torch.zeros((), device=hidden.device)
    correct = torch.zeros((), dtype=torch.long, device=hidden.device)
    for _, _, logits, tokens in _parts(hidden, targets, tail, size):
        loss += torch.nn.functional.cross_entropy(logits.float(), tokens, reduction="sum")
        correct += (logits.argmax(-1) == tokens).sum()
    return loss, correct


class SummedLoss(torch.autograd.Function):
    """The sum of negative log-likelihoods (fp32), with its gradient for hidden states and the head's weights."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, tail: Tail, size: int, *weights: torch.Tensor
    ) -> torch.Tensor:
        total = torch.zeros((), device=hidden.device)
        hidden_grad = torch.empty_like(hidden) if hidden.requires_grad else None
        weight_grads: list[torch.Tensor] = []
        with torch.enable_grad():
            for at, part, logits, tokens in _parts(hidden, targets, tail, size):
                with torch.no_grad():
                    logits_grad = torch.log_softmax(logits, -1, dtype=torch.float32)  # without a copy of the logits
                    total -= logits_grad.gather(1, tokens[:, None]).sum()
                    minus_one = logits_grad.new_full((len(tokens), 1), -1)
                    logits_grad.exp_().scatter_add_(1, tokens[:, None], minus_one)
                grads = list(_gradients(logits, [part, *weights] if part.requires_grad else [*weights], logits_grad))
                del logits, logits_grad
                if hidden_grad is not None:
                    hidden_grad[at] = grads.pop(0)
                weight_grads = [a.add_(b) for a, b in zip(weight_grads, grads, strict=True)] if weight_grads else grads
        ctx.grads = [hidden_grad, None, None, None, *weight_grads]
        return total

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> Any:
        grads, ctx.grads = ctx.grads, None
        return tuple(None if each is None else each.mul_(scale) for each in grads)


def _gradients(logits: torch.Tensor, inputs: list[torch.Tensor], logits_grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(logits, inputs, logits_grad.to(logits.dtype)) if inputs else ()
