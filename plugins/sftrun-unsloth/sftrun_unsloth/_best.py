"""The lowest validation loss so far: keeps its weights, and says when it has not fallen for too long."""

from typing import Any

from safetensors.torch import load_file, save_file

import sftrun


class Best:
    """What early_stopping and keep_best of a recipe ask for."""

    def __init__(self, recipe: sftrun.Recipe, run: sftrun.RunDir, emit: sftrun.Emit) -> None:
        self.stopping, self.keeps = recipe.train.early_stopping, recipe.train.keeps_best
        self.file, self.emit = run.checkpoints / "best.safetensors", emit
        self.step, self.loss = 0, float("inf")
        self.worse = 0  # evaluations in a row

    def evaluated(self, model: Any, step: int, loss: float) -> bool:
        """Takes note of a validation loss; true where training is to stop."""
        least = self.stopping.threshold if self.stopping else 0.0
        self.worse = 0 if loss < self.loss - least else self.worse + 1
        if loss < self.loss:
            self.step, self.loss = step, loss
            if self.keeps:
                self._keep(model)
        if not self.stopping or self.worse < self.stopping.patience:
            return False
        best = {"best_step": self.step, "best_loss": self.loss}
        self.emit({"event": "stopped_early", "step": step, "loss": loss, **best})
        return True

    def _keep(self, model: Any) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        making = self.file.with_suffix(".making")
        save_file({name: weight.detach().contiguous().cpu() for name, weight in _trained(model)}, making)
        making.replace(self.file)

    def restore(self, model: Any) -> None:
        """Puts the weights of the lowest loss back into the model, where they are to be kept."""
        if not self.keeps or not self.file.is_file():
            return
        kept = load_file(self.file)
        for name, weight in _trained(model):
            weight.data.copy_(kept[name])
        self.emit({"event": "best", "step": self.step, "loss": self.loss})


def _trained(model: Any) -> list[tuple[str, Any]]:
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
