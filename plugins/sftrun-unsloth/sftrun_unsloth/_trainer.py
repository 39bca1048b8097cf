"""The trainer that unsloth has patched, with proof that it trains on the prepared ids and labels."""

import math
import time
from typing import Any

from sftrun_unsloth._first import FastLanguageModel  # isort: skip # noqa: F401  # first, as its name says

import torch
from trl import SFTTrainer

import sftrun
from sftrun.training.trainer import RunTrainer
from sftrun_unsloth import _model

CLOSE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-2}


class Trainer(RunTrainer, SFTTrainer):  # type: ignore[misc]
    """An SFTTrainer that proves its loss before the first step, also in a resumed run."""

    proved = False

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if not self.proved:
            self.prove(model, self._prepare_inputs(dict(inputs)))
            self.since, self.proved = time.monotonic(), True
        return super().training_step(model, inputs, *args, **kwargs)

    def prove(self, model: Any, inputs: dict[str, Any]) -> None:
        """Raises UserError if the loss that is trained on is not the mean over the prepared trained tokens.

        Patched code computes the loss; it differs between models and between machines.
        """
        was = model.training
        model.eval()  # no dropout, so no random number is drawn
        with torch.no_grad():
            picked, wanted = _model.scored(model, inputs)
            expected = float(torch.nn.functional.cross_entropy(picked, wanted))
        with torch.enable_grad():
            count = torch.tensor(wanted.numel(), device=wanted.device)
            loss = float(self.compute_loss(model, dict(inputs), num_items_in_batch=count).detach())
        model.train(was)
        bound = CLOSE[torch.bfloat16 if self.args.bf16 or self.args.fp16 else torch.float32]
        if not math.isclose(loss, expected, rel_tol=bound, abs_tol=bound) and math.isfinite(expected):
            raise sftrun.UserError(
                f"unsloth's loss of the first batch is {loss:.6f}, but the loss of its trained tokens is "
                f"{expected:.6f}: unsloth would not train on this mask",
                hint="use the backend hf for this model",
            )
        data = {"loss": loss, "expected": expected, "tokens": int(count)}
        self.emit(sftrun.events.Custom(name="proved", data=data))
