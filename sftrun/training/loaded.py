"""A loaded model as evaluators see it: it generates, and sums its losses."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import transformers

import sftrun
from sftrun.training import saved

Score = Callable[[Any, dict[str, torch.Tensor]], tuple[float, int]]
"""From a model and a batch (`input_ids`, `attention_mask`, `labels`: [rows, tokens], padded on the right) to the sum of
the negative log-likelihoods of its labels, and how many of them were argmax. `t - 1` has the logits of token `t`."""


class LoadedModel:
    """A transformers model of a run, and how it scores a batch."""

    def __init__(self, model: Any, recipe: sftrun.Recipe, run: sftrun.RunDir, score: Score) -> None:
        self.model, self.run, self.score = model.eval(), run, score
        self.batch_size = recipe.train.eval_batch_size
        self.tokenizer = sftrun.load_tokenizer(recipe.model)
        self.stop = saved.stop_ids(run, model)
        pad = self.tokenizer.id_of("pad_token")
        self.pad = pad if pad is not None else (self.stop[0] if self.stop else 0)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, batch_size: int) -> list[list[int]]:
        by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        answers: list[list[int]] = [[] for _ in prompts]
        for batch in in_batches(by_length, batch_size):
            for index, answer in zip(batch, self._generate([prompts[i] for i in batch], max_new_tokens), strict=True):
                answers[index] = answer
        return answers

    @torch.inference_mode()
    def _generate(self, prompts: list[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        width = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[self.pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        settings = transformers.GenerationConfig(
            do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=self.stop or None, pad_token_id=self.pad
        )
        where = self.model.device
        made = self.model.generate(
            input_ids=ids.to(where), attention_mask=mask.to(where), generation_config=settings, use_cache=True
        )
        return [self._until_stop(row) for row in made[:, width:].tolist()]

    def _until_stop(self, ids: list[int]) -> list[int]:
        return next((ids[:at] for at, token in enumerate(ids) if token in self.stop), ids)

    def losses(self, split: str) -> sftrun.LossSums | None:
        file = self.run.prepared / f"{split}.arrow"
        if not file.is_file():
            return None
        return loss_sums(self.model, sftrun.read_samples(file), self.batch_size, self.score)


@torch.inference_mode()
def loss_sums(model: Any, samples: Iterable[Any], batch_size: int, score: Score) -> sftrun.LossSums:
    """Sums over all trained tokens, independent of how they are batched."""
    tokens, loss, correct = 0, 0.0, 0
    for batch in in_batches(samples, batch_size):
        width = max(len(sample.ids) for sample in batch)
        ids = torch.tensor([sample.ids + [0] * (width - len(sample.ids)) for sample in batch])
        mask = torch.tensor([[1] * len(s.ids) + [0] * (width - len(s.ids)) for s in batch])
        trained = torch.tensor([s.trained + [0] * (width - len(s.ids)) for s in batch]).bool()
        given = {"input_ids": ids, "attention_mask": mask, "labels": ids.where(trained, sftrun.IGNORED)}
        sums = score(model, {name: each.to(model.device) for name, each in given.items()})
        tokens, loss, correct = tokens + int(trained[:, 1:].sum()), loss + sums[0], correct + sums[1]
    return sftrun.LossSums(tokens, loss, correct)


def in_batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` items, the last one perhaps shorter."""
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
