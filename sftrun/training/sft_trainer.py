"""trl's trainer, with the loss of the head on trained positions."""

import functools
from typing import Any

import torch
from trl import SFTTrainer

from sftrun.training.model import head
from sftrun.training.trainer import RunTrainer


class Trainer(RunTrainer, SFTTrainer):  # type: ignore[misc]
    """SFTTrainer for a run, of a model that `head.patch_forward` has seen."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.data_collator: Any = functools.partial(head.collate_scored, self.data_collator)
        self.model_accepts_loss_kwargs = True  # whatever the model's forward takes: compute_loss is ours

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean over the trained tokens of an optimizer step, of all processes; of a router of experts, its own."""
        routed = {"output_router_logits": True} if self.aux_loss_enabled else {}
        made = model(
            **{name: each for name, each in inputs.items() if name != "labels"},
            **routed,
            scored=inputs["labels"],
            use_cache=False,
        )
        loss = made["loss"] / torch.as_tensor(num_items_in_batch).clamp(min=1)
        if self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # whose gradients are averaged
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * made["aux_loss"] / self.current_gradient_accumulation_steps
        return (loss, made) if return_outputs else loss
