"""The trainer that unsloth has patched, with proof that it trains on our ids and labels, and with our events."""

import math
import time
from typing import Any

from sftrun_unsloth._first import FastLanguageModel  # isort: skip # noqa: F401  # first, as its name says

import torch
from trl import SFTTrainer

import sftrun
from sftrun_unsloth import _model
from sftrun_unsloth._best import Best

IGNORED = sftrun.IGNORED
CLOSE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-2}


class Padded:
    """Makes a batch of rows: ids, labels and mask ([rows, longest]), padded on the right."""

    def __init__(self, pad_id: int) -> None:
        self.fill = {"input_ids": pad_id, "labels": IGNORED, "attention_mask": 0}

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in rows)
        full = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
        return {
            name: torch.tensor([list(row[name]) + [fill] * (width - len(row[name])) for row in full])
            for name, fill in self.fill.items()
        }


class Trainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer that proves its loss, reports events, and computes the validation loss over tokens, not batches."""

    def __init__(self, emit: sftrun.Emit, best: Best, **settings: Any) -> None:
        super().__init__(**settings)
        self.emit, self.best = emit, best
        self.proved = False
        self.tokens = self.trained = self.seen = self.seen_trained = 0
        self.since = time.monotonic()

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if not self.proved:
            self.prove(model, self._prepare_inputs(dict(inputs)))
            self.since, self.proved = time.monotonic(), True
        self.tokens += int(inputs["attention_mask"].sum())
        self.trained += int((inputs["labels"] != IGNORED).sum())
        return super().training_step(model, inputs, *args, **kwargs)

    def prove(self, model: Any, inputs: dict[str, Any]) -> None:
        """Raises UserError where the loss that is trained on is not the mean over our trained tokens.

        The loss comes from patched code, which differs from model to model and from machine to machine.
        """
        was = model.training
        model.eval()  # no dropout, and no random number is drawn
        with torch.no_grad():
            trained = inputs["labels"] != IGNORED
            picked, wanted = _model.scored(model, inputs["input_ids"], inputs["attention_mask"], trained)
            expected = float(torch.nn.functional.cross_entropy(picked, wanted))
        with torch.enable_grad():
            count = torch.tensor(wanted.numel(), device=wanted.device)
            found = float(self.compute_loss(model, dict(inputs), num_items_in_batch=count).detach())
        model.train(was)
        bound = CLOSE[torch.bfloat16 if self.args.bf16 or self.args.fp16 else torch.float32]
        if not math.isclose(found, expected, rel_tol=bound, abs_tol=bound) and math.isfinite(expected):
            raise sftrun.UserError(
                f"unsloth's loss of the first batch is {found:.6f}, but that of its trained tokens is {expected:.6f}: "
                "it would not train on this mask",
                hint="use the backend hf for this model",
            )
        self.emit({"event": "proved", "loss": found, "expected": expected, "tokens": int(count)})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        if "loss" in logs:
            self._report(logs)

    def _report(self, logs: dict[str, float]) -> None:
        now, step = time.monotonic(), self.state.global_step
        if not math.isfinite(logs["loss"]):
            raise sftrun.UserError(
                f"the loss is {logs['loss']} at step {step}",
                hint="lower train.learning_rate, raise train.warmup, or use precision bf16 or fp32",
            )
        took = now - self.since
        self.emit(
            {
                "event": "step",
                "step": step,
                "steps": self.state.max_steps,
                "epoch": round(logs.get("epoch", 0), 3),
                "loss": logs["loss"],
                "learning_rate": logs["learning_rate"],
                "grad_norm": float(logs.get("grad_norm") or 0),
                "tokens": self.tokens,
                "trained_tokens": self.trained,
                "tokens_per_s": round((self.tokens - self.seen) / took, 1),
                "trained_tokens_per_s": round((self.trained - self.seen_trained) / took, 1),
            }
        )
        self.seen, self.seen_trained, self.since = self.tokens, self.trained, now

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        started = time.monotonic()
        self.emit({"event": "validating", "step": self.state.global_step})
        samples = (sftrun.to_sample(row) for row in self.eval_dataset)
        self.model.eval()
        sums = _model.loss_sums(self.model, samples, self.args.per_device_eval_batch_size)
        self.model.train()
        metrics = {"eval_loss": sums.loss / sums.tokens, "eval_token_accuracy": sums.correct / sums.tokens}
        self.log(metrics)
        self.emit({"event": "eval", "step": self.state.global_step, "loss": metrics["eval_loss"]})
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.control.should_training_stop |= self.best.evaluated(
            self.model, self.state.global_step, metrics["eval_loss"]
        )
        self.since += time.monotonic() - started  # tokens/s is of training alone
        return metrics

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        started = time.monotonic()
        super()._save_checkpoint(model, trial)
        self.emit({"event": "checkpoint", "step": self.state.global_step})
        self.since += time.monotonic() - started
