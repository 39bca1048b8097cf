"""trl's trainer, with the loss computed on trained positions only."""

import functools
from typing import Any

import torch
from trl import SFTTrainer

from sftrun.training.model import head
from sftrun.training.trainer import RunTrainer


class Trainer(RunTrainer, SFTTrainer):  # type: ignore[misc]
    """An SFTTrainer for a model whose forward `head.patch_forward` has replaced."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.data_collator: Any = functools.partial(head.collate_scored, self.data_collator)
        self.model_accepts_loss_kwargs = True  # compute_loss below does the scaling, whatever the model's forward takes

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Returns the mean loss over trained tokens of an optimizer step on every rank, plus the router's loss."""
        routed = {"output_router_logits": True} if self.aux_loss_enabled else {}
        outputs = model(
            **{name: each for name, each in inputs.items() if name != "labels"},
            **routed,
            scored=inputs["labels"],
            use_cache=False,
        )
        loss = outputs["loss"] / torch.as_tensor(num_items_in_batch).clamp(min=1)
        if self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # DDP averages the gradients over ranks
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs["aux_loss"] / self.current_gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss
