"""The head of a language model and its cross-entropy, on the positions whose next token is trained, and no others.

Logits of all positions are the largest thing in training: 4,096 tokens of a vocabulary of 151,936 are 2.5 GB in fp32,
and as much again for their softmax. Here a model's own head (scaling, softcap, adapters and all) is given the hidden
states of trained positions alone, as many at a time as make 512 MB of logits. The gradient is known as soon as the
softmax is, so that nothing of that size is kept for the backward pass.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import peft
import torch

import sftrun
import sftrun.data

AT_ONCE = 2**29  # bytes of fp32 logits; less makes matrices too thin for a GPU, more saves no time

Tail = Callable[[torch.Tensor], torch.Tensor]
"""From hidden states ([positions, hidden]) to logits ([positions, vocabulary])."""
Kernel = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From hidden states and the tokens wanted ([positions]) to the sum of their negative log-likelihoods."""


def add(model: Any, kernel: Kernel | None = None, parts: bool = True) -> None:
    """Lets a causal language model be called with `scored=labels` ([rows, tokens]), for sums over trained tokens.

    `scored_at`, as `collated` adds it, spares it the search for them, for which a GPU would have to end its work.

    It returns {"loss": …, "correct": …, "aux_loss": …}: their negative log-likelihood; without gradients how many were
    argmax; and what the model itself adds to a loss (of a router of experts), where it is asked to. Called without
    `scored` it is as it was. All happens within the model's forward, so that wrappers of it work as ever. A `kernel`
    takes the place of the head where gradients are wanted. Without `parts` the logits of all trained positions are
    there together, and their gradient comes with all others, as processes that share the head need it.
    """
    inner = _inner(model)
    summed = (lambda rows, tokens, *_: kernel(rows, tokens)) if kernel else in_parts if parts else whole
    original = getattr(inner.forward, "original", inner.forward)

    @functools.wraps(type(inner).forward)
    def forward(
        *args: Any, scored: torch.Tensor | None = None, scored_at: torch.Tensor | None = None, **given: Any
    ) -> Any:
        if scored is None:
            return original(*args, **given)
        at = positions(scored) if scored_at is None else scored_at
        return _scored(inner, original, summed, (scored, at), (args, given))

    forward.original = original  # type: ignore[attr-defined]
    inner.forward = forward


def positions(labels: torch.Tensor) -> torch.Tensor:
    """Where the next token is trained, in rows that are laid end to end."""
    rows, columns = (labels[:, 1:] != sftrun.data.IGNORED).nonzero(as_tuple=True)
    return rows * labels.shape[1] + columns


def collated(collate: Callable[[Any], dict[str, Any]], examples: Any) -> dict[str, Any]:
    """A batch with the positions of what is trained, while it is on the CPU."""
    batch = collate(examples)
    return {**batch, "scored_at": positions(batch["labels"])}


def score(model: Any, batch: dict[str, torch.Tensor]) -> tuple[float, int]:
    """The summed negative log-likelihood of a batch's labels, and how many were argmax, of a model with this head."""
    given = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    made = model(**given, scored=batch["labels"], use_cache=False)
    return made["loss"].item(), int(made["correct"])


def _inner(model: Any) -> Any:
    return model.get_base_model() if isinstance(model, peft.PeftModel) else model


def _scored(inner: Any, original: Any, summed: Any, wanted: Any, call: Any) -> dict[str, Any]:
    labels, at = wanted
    rest, hidden, tail = apart(inner, original, *call)
    rows, tokens = hidden.flatten(0, 1).index_select(0, at), labels.flatten()[at + 1]
    found: dict[str, Any] = {}
    if not torch.is_grad_enabled():
        found["loss"], found["correct"] = counted(rows, tokens, tail, at_once(rest.logits.shape[-1]))
    else:
        found["loss"] = summed(rows, tokens, tail, rest.logits)
    if getattr(rest, "aux_loss", None) is not None:
        found["aux_loss"] = rest.aux_loss
    return found


def in_parts(rows: torch.Tensor, tokens: torch.Tensor, tail: Tail, logits: torch.Tensor) -> torch.Tensor:
    """The sum, with the gradient of each part computed beside it; `logits` are of no position."""
    weights = [] if tail is _same else leaves(logits)
    made: torch.Tensor = Summed.apply(rows, tokens, tail, at_once(logits.shape[-1]), *weights)  # type: ignore[no-untyped-call]
    return made


def whole(rows: torch.Tensor, tokens: torch.Tensor, tail: Tail, logits: torch.Tensor) -> torch.Tensor:
    """The sum, with a gradient as torch computes it."""
    return torch.nn.functional.cross_entropy(tail(rows).float(), tokens, reduction="sum")


def at_once(vocabulary: int) -> int:
    """Positions whose logits are there together."""
    return max(AT_ONCE // (4 * vocabulary), 1)


def _same(logits: torch.Tensor) -> torch.Tensor:
    return logits


def apart(inner: Any, original: Any, args: Any, given: dict[str, Any]) -> tuple[Any, torch.Tensor, Tail]:
    """Runs a model up to its head: what it returns of no position, the hidden states, and its head as a function.

    The model's own forward is run, with another module in its backbone's place: first one that hands on no position,
    then, for each part, one that gives out these hidden states. So whatever a model does to its logits is done.
    """
    name = inner.base_model_prefix
    backbone = getattr(inner, name, None)
    if not isinstance(backbone, torch.nn.Module):
        rest = original(*args, **given)  # a model whose head cannot be called apart: the logits of all positions
        return rest, rest.logits, _same
    made: list[Any] = []

    def run(*args: Any, **given: Any) -> Any:
        made.append(backbone(*args, **given))
        return _with(made[0], made[0].last_hidden_state[:, :0].detach())

    with _in_place(inner, name, run):
        rest = original(*args, **given)

    def tail(part: torch.Tensor) -> torch.Tensor:
        with _in_place(inner, name, lambda *_, **__: type(made[0])(last_hidden_state=part[None])):
            logits: torch.Tensor = original(inputs_embeds=part[None], use_cache=False).logits
        return logits.squeeze(0)  # the gradient of logits[0] would be one more copy of them

    return rest, made[0].last_hidden_state, tail


def _with(made: Any, hidden: torch.Tensor) -> Any:
    return type(made)(**{**made, "last_hidden_state": hidden})


class _Stand(torch.nn.Module):
    """Answers for a module, whose attributes it has."""

    def __init__(self, module: torch.nn.Module, answer: Callable[..., Any]) -> None:
        super().__init__()
        self.__dict__["module"], self.forward = module, answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["module"], name)


@contextlib.contextmanager
def _in_place(owner: Any, name: str, answer: Callable[..., Any]) -> Iterator[None]:
    module = owner._modules[name]
    owner._modules[name] = _Stand(module, answer)
    try:
        yield
    finally:
        owner._modules[name] = module


def leaves(made: torch.Tensor) -> list[torch.Tensor]:
    """The trained parameters that a tensor was made of, wherever a head has them from."""
    found: dict[int, torch.Tensor] = {}
    seen: set[Any] = set()
    ahead = [made.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        ahead += [each for each, _ in node.next_functions]
    return list(found.values())


def _parts(
    hidden: torch.Tensor, wanted: torch.Tensor, tail: Tail, size: int
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """So many positions at a time: where they are, their hidden states and logits, and the tokens wanted."""
    for start in range(0, max(len(hidden), 1), size):
        at = slice(start, start + size)
        part = hidden[at].detach().requires_grad_(hidden.requires_grad)
        yield at, part, tail(part), wanted[at]


def counted(hidden: torch.Tensor, wanted: torch.Tensor, tail: Tail, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of negative log-likelihoods, and how many tokens were argmax."""
    loss = torch.zeros((), device=hidden.device)
    correct = torch.zeros((), dtype=torch.long, device=hidden.device)
    for _, _, logits, tokens in _parts(hidden, wanted, tail, size):
        loss += torch.nn.functional.cross_entropy(logits.float(), tokens, reduction="sum")
        correct += (logits.argmax(-1) == tokens).sum()
    return loss, correct


class Summed(torch.autograd.Function):
    """The sum of negative log-likelihoods (fp32), and its gradient for hidden states and the head's weights."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, wanted: torch.Tensor, tail: Tail, size: int, *weights: torch.Tensor
    ) -> torch.Tensor:
        total = torch.zeros((), device=hidden.device)
        of_hidden = torch.empty_like(hidden) if hidden.requires_grad else None
        of_weights: list[torch.Tensor] = []
        with torch.enable_grad():
            for at, part, logits, tokens in _parts(hidden, wanted, tail, size):
                with torch.no_grad():
                    slope = torch.log_softmax(logits, -1, dtype=torch.float32)  # without a copy of the logits
                    total -= slope.gather(1, tokens[:, None]).sum()
                    slope.exp_().scatter_add_(1, tokens[:, None], slope.new_full((len(tokens), 1), -1))
                found = list(_gradients(logits, [part, *weights] if part.requires_grad else [*weights], slope))
                del logits, slope
                if of_hidden is not None:
                    of_hidden[at] = found.pop(0)
                of_weights = [a.add_(b) for a, b in zip(of_weights, found, strict=True)] if of_weights else found
        ctx.found = [of_hidden, None, None, None, *of_weights]
        return total

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> Any:
        found, ctx.found = ctx.found, None
        return tuple(None if each is None else each.mul_(scale) for each in found)


def _gradients(logits: torch.Tensor, inputs: list[torch.Tensor], slope: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(logits, inputs, slope.to(logits.dtype)) if inputs else ()
