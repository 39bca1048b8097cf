"""Bytes of memory of a training process, by moment and part."""

from sftrun.training.memory import shares

Memory = dict[str, dict[str, int]]


def of(held: dict[str, int], share: shares.Share, step: dict[str, int], temporaries: int, where: str) -> Memory:
    """Of a process with its share of the model: `held` all along, `step` in a pass, `temporaries` of the optimizer.

    Loading takes no more: weights come through pages of files, which can be taken back.
    """
    gradients = {"gradients": share.gradients}
    memory = {"forward and backward": {**held, **gradients, **step, **gathered(share.gathered)}}
    if share.reduced and where == "cpu":  # large blocks, which do not go where activations were
        memory["forward and backward"] |= gathered(max(share.gathered, share.reduced))
    elif share.reduced:
        memory["reduction"] = {**held, **gradients, **gathered(share.reduced)}
    memory["optimizer step"] = {**held, **gradients, "temporaries": temporaries}
    return memory


def gathered(size: int) -> dict[str, int]:
    """The part that only processes have which share a model."""
    return {"gathered": size} if size else {}
