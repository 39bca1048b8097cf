"""trl's trainer with the losses, the counts and the order of rows of sftrun."""

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from trl import SFTTrainer

import sftrun
from sftrun.builtin.backends import _batches, _hf_model, _ranks, _rows
from sftrun.builtin.backends._keeper import Keeper


class Trainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer that reports events, counts tokens and computes the validation loss over tokens, not batches."""

    def __init__(self, emit: sftrun.Emit, rows: Any, keeper: Keeper, sort: bool, **settings: Any) -> None:
        super().__init__(**settings)
        self.emit, self.keeper, self.sort = emit, keeper, sort
        # trl looks at a row of a dataset of its own kind, and trains on these
        self.rows, self.train_dataset = rows, _batches.Even(rows, self.args.train_batch_size, _ranks.size())
        self.tokens = self.trained = self.seen = self.seen_trained = 0  # of all processes, when last counted
        self.uncounted: list[Any] = []  # tokens of this process since then, and those of them that are trained
        self.model_accepts_loss_kwargs = True  # whatever the model's forward takes: compute_loss is ours
        self.since = time.monotonic()

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        self.order = self._ordered()
        return self.order

    def _ordered(self) -> _batches.Shuffled:
        """Batches of similar lengths, if wanted; what one optimizer step sees does not depend on how it is split."""
        if not self.sort or isinstance(self.rows, _rows.PackedRows):
            return _batches.Shuffled(len(self.rows), self.args.seed, len(self.train_dataset))
        step = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        return _batches.ByLength(self.rows.lengths, step, self.args.seed, len(self.train_dataset))

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        given = inputs.get("attention_mask")  # packed rows have neither mask nor padding
        tokens = inputs["input_ids"].numel() if given is None else given.sum()
        trained = inputs["scored_at"].numel()
        self.uncounted.append((tokens if trained else 0, trained))  # nothing is trained in rows that fill up a step
        return super().training_step(model, inputs, *args, **kwargs)

    def count(self) -> None:
        """Adds up the tokens of all processes; not at every step, for a GPU would have to end its work first."""
        own = [sum(int(each[index]) for each in self.uncounted) for index in (0, 1)]
        tokens, trained = _ranks.summed(own)
        self.tokens, self.trained = self.tokens + int(tokens), self.trained + int(trained)
        self.uncounted.clear()

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

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        if "loss" in logs:
            self._report(logs)

    def _report(self, logs: dict[str, float]) -> None:
        now, step = time.monotonic(), self.state.global_step
        if not math.isfinite(logs["loss"]):
            raise self.keeper.diverged(f"the loss is {logs['loss']}")
        self.count()
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
        self.model.eval()
        tokens, loss, correct = self._evaluated()
        self.model.train()
        metrics = {"eval_loss": loss / tokens, "eval_token_accuracy": correct / tokens}
        self.log(metrics)
        self.emit({"event": "eval", "step": self.state.global_step, "loss": metrics["eval_loss"]})
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.keeper.evaluated(metrics["eval_loss"], self.control)
        self.since += time.monotonic() - started  # tokens/s is of training alone
        return metrics

    def _evaluated(self) -> list[float]:
        """Tokens, loss and argmaxes of all processes, each of which takes its share of the batches.

        All of them compute as many, as a model that is sharded needs them all for each; what one has not, it repeats.
        """
        size, parts = self.args.per_device_eval_batch_size, _ranks.size()
        starts = list(range(0, len(self.eval_dataset), size))
        own = starts[_ranks.number() :: parts]
        sums = _hf_model.loss_sums(self.model, self._samples(own, size), size)
        if len(own) < -(-len(starts) // parts):
            _hf_model.loss_sums(self.model, self._samples(starts[:1], size), size)
        return _ranks.summed([sums.tokens, sums.loss, sums.correct])

    def _samples(self, starts: list[int], size: int) -> Iterator[Any]:
        for start in starts:
            for row in range(start, min(start + size, len(self.eval_dataset))):
                yield sftrun.to_sample(self.eval_dataset[row])

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        started = time.monotonic()
        self.keeper.save(lambda: super(Trainer, self)._save_checkpoint(model, trial))
        self.since += time.monotonic() - started

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.keeper.making or self.args.output_dir)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The run directory has a card of its own."""
