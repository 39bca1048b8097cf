"""Decides when a checkpoint is written, which checkpoints stay, and when training stops early."""

import contextlib
import signal
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import transformers

import sftrun
from sftrun import events
from sftrun.training import base_model, checkpoints, ranks, weights

# counters of the trainer, from the start of the run
COUNTED = ("tokens", "trained", "seen", "seen_trained")
# private names of transformers' and trl's trainers that an exact resume relies on, or that RunTrainer overrides
METHODS = ("_save_checkpoint", "_get_output_dir", "_get_train_sampler", "_load_from_checkpoint", "create_scheduler")
STATE = ("_tr_loss", "_globalstep_last_logged", "_created_lr_scheduler")
STATE_OF_TRL = ("_metrics", "_total_train_tokens")
EXACT = 1e-9  # epochs; the rounding error of a sum of steps


class Keeper(transformers.TrainerCallback):  # type: ignore[misc]
    """A trainer callback that resumes from the last complete checkpoint of a run, and writes new ones.

    A checkpoint at the end of an epoch is written after that epoch's evaluation, so that no evaluation is lost
    between two attempts.
    """

    def __init__(self, recipe: sftrun.Recipe, run: sftrun.RunDir, emit: sftrun.kinds.Emit) -> None:
        options = recipe.train
        self.recipe, self.run = recipe, run
        self.folder, self.emit = run.checkpoints, emit
        self.limit, self.saves = options.save_total_limit, options.save_strategy != "no"
        self.stopping, self.keep_best = options.early_stopping, options.keeps_best
        self.start = self._find_start()
        if ranks.is_first():
            base_model.pin_base(recipe, run, resuming=self.start is not None)
        begun = (
            self.start is not None or ranks.is_restarted() or any(event["event"] == "step" for event in run.events())
        )
        self.again = bool(ranks.broadcast(begun))
        self.making: Path | None = None
        self.asked = self.stopping_now = self.postponed = False
        self.saved = -1
        self.evaluated_at: tuple[int, float] | None = None
        self.lowest: tuple[int, float] | None = None  # the step and the loss of the best evaluation so far
        self.worse = 0  # evaluations since then
        self.trainer: Any = None

    def _find_start(self) -> checkpoints.Checkpoint | None:
        """Returns the checkpoint to resume from; rank 0 finds it, removes broken ones, and broadcasts its step."""
        step = None
        if ranks.is_first():
            latest = checkpoints.latest_intact(self.folder, self.emit)
            step = latest.step if latest else None
        step = ranks.broadcast(step)
        if step is not None:
            checkpoints.wait_for_files(self.folder / f"checkpoint-{step}", [checkpoints.MARKER])
        return next((each for each in checkpoints.complete_checkpoints(self.folder) if each.step == step), None)

    def train(self, trainer: Any, save: Callable[[], None] = lambda: None) -> None:
        """Trains from the last complete checkpoint to the end, then calls `save` with the chosen weights loaded.

        On SIGTERM it writes a checkpoint at the end of the step and raises Interrupted. After the last step, SIGTERM
        has no effect until the model is saved: there may be no checkpoint to make the model from again.
        """
        with self._sigterm_handler():
            self._train(trainer)
            save()

    def _train(self, trainer: Any) -> None:
        self.trainer, start = trainer, self.start
        if self.again:
            self.emit(events.Resumed(step=self._step(), **self._tokens()))
        if start and start.finished:
            trainer._load_from_checkpoint(str(start.folder))
            self._restore_counts(start.progress)
        else:
            trainer.train(resume_from_checkpoint=str(start.folder) if start else None)
        if self.keep_best and self.lowest is not None:
            self._load_best(self.lowest)

    def _step(self) -> int:
        return self.start.step if self.start else 0

    def _tokens(self) -> dict[str, int]:
        progress = self.start.progress if self.start else {}
        return {"tokens": progress.get("tokens", 0), "trained_tokens": progress.get("trained", 0)}

    def _best_intact(self, lowest: tuple[int, float]) -> tuple[int, float] | None:
        """Returns the best evaluation with an intact checkpoint; warns if it is not the one with the lowest loss."""
        intact: tuple[int, float] | None = lowest
        if self.keep_best and ranks.is_first():
            best = checkpoints.best(self.folder)
            while best and best.broken_file():
                checkpoints.remove(best.folder)
                best = checkpoints.best(self.folder)
            intact = (best.step, best.loss) if best and best.loss is not None else None
            if intact != lowest:
                message = f"checkpoint-{lowest[0]}, with the lowest validation loss so far, is no longer complete"
                instead = (
                    f"checkpoint-{intact[0]} is the best one left" if intact else "the next evaluation takes its place"
                )
                self.emit(sftrun.events.Warned(message=f"{message}; {instead}"))
        intact = ranks.broadcast(intact)
        return tuple(intact) if intact else None

    def _load_best(self, lowest: tuple[int, float]) -> None:
        """Loads the weights of the best checkpoint into the model."""
        step, loss = lowest
        self.trainer._load_from_checkpoint(str(self.folder / f"checkpoint-{step}"))
        self.emit(events.Best(step=step, loss=loss))

    @contextlib.contextmanager
    def _sigterm_handler(self) -> Iterator[None]:
        """A handler that turns SIGTERM into a request for a checkpoint."""

        def note(_number: int, _frame: object) -> None:
            self.asked = True

        before = signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        check_internals(self.trainer)
        ranks.check_processes(self.trainer, self.recipe)
        if ranks.world_size() > 1:
            self.emit(events.Launched(**ranks.launch_facts(self.recipe)))
        if self.start:
            self._restore_progress(self.start.progress)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        # with several processes accelerate does not set the epoch of the sampler when an epoch is resumed
        self.trainer.order.set_epoch(int(state.epoch + EXACT))

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.stopping_now = ranks.any_rank(self.asked)
        control.should_save |= self.stopping_now
        if control.should_training_stop or state.epoch == int(state.epoch):
            self.postponed, control.should_save = control.should_save, False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.stopping_now = ranks.any_rank(self.asked)
        control.should_save |= self.postponed or self.stopping_now
        self.postponed = False

    def evaluated(self, loss: float, control: Any) -> None:
        """Records a validation loss: asks for a checkpoint if it is the lowest, and stops training after `patience`
        evaluations without a lower one.
        """
        step, before = self.trainer.state.global_step, self.lowest
        self.evaluated_at = (step, loss)
        least = self.stopping.threshold if self.stopping else 0.0
        self.worse = 0 if before is None or loss < before[1] - least else self.worse + 1
        if before is None or loss < before[1]:
            self.lowest = self.evaluated_at
            control.should_save |= self.keep_best
        if self.stopping and self.worse >= self.stopping.patience and self.lowest:
            control.should_training_stop = True
            control.should_save |= self.saves
            best_step, best_loss = self.lowest
            self.emit(events.StoppedEarly(step=step, loss=loss, best_step=best_step, best_loss=best_loss))

    def save(self, write: Callable[[], None]) -> None:
        """Writes a complete checkpoint of the trainer; raises Interrupted if a signal has asked for it."""
        step = self.trainer.state.global_step
        if step != self.saved:
            parts = weights.local_parts(self.trainer.model)
            if ranks.any_rank(not all(bool(part.isfinite().all()) for part in parts)):
                raise self.diverged("there are weights that are not finite")  # nothing could resume from them
            with checkpoints.disk_errors(f"the checkpoint of step {step}", self.folder):
                self._write(write, f"checkpoint-{step}")
            self.saved = step
            self.emit(events.Checkpoint(step=step, path=f"{self.folder.name}/checkpoint-{step}"))
        if self.stopping_now:
            raise sftrun.errors.Interrupted

    def _write(self, write: Callable[[], None], name: str) -> None:
        """Writes a checkpoint from every rank into one folder; rank 0 creates it, and seals it at the end."""
        self.making = self.folder / checkpoints.SAVING
        try:
            if ranks.is_first():
                checkpoints.begin(self.folder)
            ranks.barrier()
            write()
            progress = self._progress()
            written = {each for some in ranks.all_gather(checkpoints.list_files(self.making / name)) for each in some}
            if ranks.is_first():
                checkpoints.wait_for_files(self.making / name, sorted(written))
                self._seal(self.making / name, progress)
                checkpoints.prune(self.folder, self.limit)
            ranks.barrier()
        finally:
            self.making = None

    def diverged(self, what: str) -> sftrun.UserError:
        """Returns the error for a loss or weights that are not finite."""
        message = f"{what} at step {self.trainer.state.global_step}; {checkpoints.describe_latest(self.folder)}"
        hint = "lower train.learning_rate, raise train.warmup, or use precision bf16 or fp32"
        return sftrun.UserError(message, hint=hint)

    def _seal(self, folder: Path, progress: dict[str, Any]) -> None:
        step = self.trainer.state.global_step
        loss = self.evaluated_at[1] if self.evaluated_at and self.evaluated_at[0] == step else None
        finished = self.trainer.control.should_training_stop
        checkpoints.seal(folder, step=step, loss=loss, finished=finished, progress=progress)

    def _progress(self) -> dict[str, Any]:
        """Returns counters and losses not yet logged, which the next attempt needs and the trainer does not save."""
        trainer = self.trainer
        trainer.count()
        logged = {"losses": ranks.all_gather(trainer._tr_loss.item()), "step": trainer._globalstep_last_logged}
        counts = {name: getattr(trainer, name) for name in COUNTED}
        of_trl = {}
        if _is_of_trl(trainer):
            of_trl = {"metrics": dict(trainer._metrics["train"]), "_total_train_tokens": trainer._total_train_tokens}
        return {**counts, **of_trl, "logged": logged, "lowest": self.lowest, "worse": self.worse}

    def _restore_counts(self, progress: dict[str, Any]) -> None:
        for name in COUNTED:
            setattr(self.trainer, name, progress[name])
        self.lowest = self._best_intact(tuple(progress["lowest"])) if progress["lowest"] else None
        self.worse = progress["worse"]

    def _restore_progress(self, progress: dict[str, Any]) -> None:
        """Restores what a trainer that has started again needs for the rest of the training."""
        self._restore_counts(progress)
        if _is_of_trl(self.trainer):
            self.trainer._metrics["train"] = defaultdict(list, progress["metrics"])
            self.trainer._total_train_tokens = progress["_total_train_tokens"]
        losses = progress["logged"]["losses"]
        same = len(losses) == ranks.world_size()  # with another world size only the mean is the same
        self.trainer._tr_loss += losses[ranks.rank()] if same else sum(losses) / len(losses)
        self.trainer._globalstep_last_logged = progress["logged"]["step"]


def _is_of_trl(trainer: Any) -> bool:
    return any(each.__module__.partition(".")[0] == "trl" for each in type(trainer).__mro__)


def check_internals(trainer: Any) -> None:
    """Raises UserError if transformers or trl have renamed what RunTrainer overrides, or what a resume restores.

    Without a check an override of an old name would be called no more, and a resumed run would be inexact.
    """
    lacking = [name for name in METHODS if not hasattr(transformers.Trainer, name)]
    state = (*STATE, *(STATE_OF_TRL if _is_of_trl(trainer) else ()))
    lacking += [name for name in state if not hasattr(trainer, name)]
    if lacking:
        message = (
            f"the trainer of transformers {transformers.__version__} has no {', '.join(lacking)}, which sftrun needs"
        )
        raise sftrun.UserError(message, hint="install the versions in sftrun's constraints.txt")
