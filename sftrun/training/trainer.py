"""Changes to transformers' or trl's trainer for a run: events, token counts, order of rows, validation loss."""

import math
import time
from collections.abc import Iterator
from typing import Any

import sftrun
import sftrun.data
from sftrun import events
from sftrun.training import batches, ranks, saved, schedule
from sftrun.training.keeper import Keeper
from sftrun.training.loaded import Score, loss_sums
from sftrun.training.rows import PackedRows, Rows, one_row, validation_rows
from sftrun.training.settings import ineffective_options
from sftrun.training.tokenizer import load_transformers_tokenizer, pad_id


class RunTrainer:
    """A mixin that comes before trl's trainer: `class Trainer(RunTrainer, SFTTrainer)`.

    It reports events and counts tokens. The seed and the epoch alone decide the order of rows, and the validation loss
    is a mean over tokens, not over batches. Its keeper starts it and saves its checkpoints. It trains on `rows`, and
    passes `settings` (`model` and `args` among them) to trl's trainer.
    """

    args: Any
    model: Any
    state: Any
    control: Any
    eval_dataset: Any
    callback_handler: Any
    optimizer: Any
    lr_scheduler: Any

    def __init__(self, keeper: Keeper, rows: Any, score: Score, **settings: Any) -> None:
        recipe, run = keeper.recipe, keeper.run
        tokenizer = load_transformers_tokenizer(recipe, run, keeper.emit)
        for message in ineffective_options(recipe, run, len(rows)):
            keeper.emit(sftrun.events.Warned(message=message))
        validation = validation_rows(run)
        super().__init__(  # type: ignore[call-arg]
            data_collator=batches.choose_collator(rows, pad_id(tokenizer)),
            train_dataset=one_row(rows if isinstance(rows, Rows) else Rows(run.prepared / "train.arrow")),
            eval_dataset=one_row(validation),
            processing_class=tokenizer,
            callbacks=[keeper],
            **settings,
        )
        self.keeper, self.emit, self.score = keeper, keeper.emit, score
        self.validation: Any = validation
        # trl inspected one row of a datasets.Dataset; it trains on these
        self.rows, self.train_dataset = rows, batches.EvenDataset(rows, self.args.train_batch_size, ranks.world_size())
        self.tokens = self.trained = self.seen = self.seen_trained = 0  # over all ranks, when last counted
        self.uncounted: list[Any] = []  # pairs of tokens and trained tokens on this rank since then
        self.since = time.monotonic()

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        self.order = self._make_sampler()
        return self.order

    def _make_sampler(self) -> batches.ShuffledSampler:
        """Returns the order of rows, grouped by length if the recipe asks for it.

        The rows of an optimizer step do not depend on its split into micro-batches.
        """
        if not self.keeper.recipe.train.group_by_length or isinstance(self.rows, PackedRows):
            return batches.ShuffledSampler(len(self.rows), self.args.seed, len(self.train_dataset))
        step = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        return batches.LengthGroupedSampler(self.rows.lengths, step, self.args.seed, len(self.train_dataset))

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Returns the learning rate's schedule; unlike transformers' own, it has no step with a rate of 0."""
        if self.lr_scheduler is None:
            used = self.optimizer if optimizer is None else optimizer
            kind, warmup = self.keeper.recipe.train.scheduler, self.args.warmup_steps
            self.lr_scheduler = schedule.make_scheduler(used, kind, int(warmup), num_training_steps)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        given = inputs.get("attention_mask")  # None for packed rows, which have no padding
        tokens = inputs["input_ids"].numel() if given is None else given.sum()
        trained = (inputs["labels"][:, 1:] != batches.IGNORED).sum()  # nothing predicts the first token
        self.uncounted.append((tokens * (trained > 0), trained))  # rows that only fill up a step have no trained tokens
        return super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def count(self) -> None:
        """Adds up the tokens of every rank; not at every step, because a GPU would have to finish its work first."""
        own = [sum(int(each[index]) for each in self.uncounted) for index in (0, 1)]
        tokens, trained = ranks.all_reduce_sum(own)
        self.tokens, self.trained = self.tokens + int(tokens), self.trained + int(trained)
        self.uncounted.clear()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)  # type: ignore[misc]
        if "loss" in logs:
            self._report(logs)

    def _report(self, logs: dict[str, float]) -> None:
        now, step = time.monotonic(), self.state.global_step
        if not math.isfinite(logs["loss"]):
            raise self.keeper.diverged(f"the loss is {logs['loss']}")
        self.count()
        took = now - self.since
        self.emit(
            events.Step(
                step=step,
                steps=self.state.max_steps,
                epoch=round(logs.get("epoch", 0), 3),
                loss=logs["loss"],
                learning_rate=logs["learning_rate"],
                grad_norm=float(logs.get("grad_norm") or 0),
                tokens=self.tokens,
                trained_tokens=self.trained,
                tokens_per_s=round((self.tokens - self.seen) / took, 1),
                trained_tokens_per_s=round((self.trained - self.seen_trained) / took, 1),
            )
        )
        self.seen, self.seen_trained, self.since = self.tokens, self.trained, now

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        started = time.monotonic()
        self.emit(events.Validating(step=self.state.global_step))
        self.model.eval()
        tokens, loss, correct = self._sum_losses()
        self.model.train()
        metrics = {"eval_loss": loss / tokens, "eval_token_accuracy": correct / tokens}
        self.log(metrics)
        self.emit(events.Eval(step=self.state.global_step, loss=metrics["eval_loss"]))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.keeper.evaluated(metrics["eval_loss"], self.control)
        self.since += time.monotonic() - started  # tokens/s is of training alone
        return metrics

    def _sum_losses(self) -> list[float]:
        """Returns the sums of tokens, loss and argmaxes over every rank; each rank computes its share of the batches.

        Every rank computes the same number of batches, because a sharded model needs every rank for each forward pass:
        a rank with one batch less repeats the first one.
        """
        size, parts = self.args.per_device_eval_batch_size, ranks.world_size()
        starts = list(range(0, len(self.validation), size))
        own = starts[ranks.rank() :: parts]
        sums = loss_sums(self.model, self._samples(own, size), size, self.score)
        if len(own) < -(-len(starts) // parts):
            loss_sums(self.model, self._samples(starts[:1], size), size, self.score)
        return ranks.all_reduce_sum([sums.tokens, sums.loss, sums.correct])

    def _samples(self, starts: list[int], size: int) -> Iterator[Any]:
        for start in starts:
            for row in range(start, min(start + size, len(self.validation))):
                yield self.validation.samples.arrays(row)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        started = time.monotonic()
        with saved.savable_generation(self.model):
            self.keeper.save(lambda: super(RunTrainer, self)._save_checkpoint(model, trial))  # type: ignore[misc]
        self.since += time.monotonic() - started

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.keeper.making or self.args.output_dir)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes nothing: the run directory has its own card."""
