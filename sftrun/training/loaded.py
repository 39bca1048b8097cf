"""A loaded model as evaluators use it: it generates, and computes log-likelihoods and losses."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import transformers

import sftrun
import sftrun.data
from sftrun.training import saved
from sftrun.training.batches import pad

Score = Callable[[Any, dict[str, torch.Tensor]], tuple[float, int]]
"""A function of a model and a batch (`input_ids`, `attention_mask`, `labels`: [rows, tokens], padded on the right). It
returns the summed negative log-likelihood of the labels, and the number of labels that are the argmax. The logits at
position `t - 1` predict token `t`."""


class LoadedModel:
    """A transformers model of a run, with the function that scores a batch."""

    def __init__(self, model: Any, recipe: sftrun.Recipe, run: sftrun.RunDir, score: Score) -> None:
        self.model, self.recipe, self.run, self.score = model.eval(), recipe, run, score
        self.batch_size = recipe.train.eval_batch_size
        self.tokenizer = sftrun.data.load_tokenizer(recipe.model)
        self.stop = saved.stop_ids(run, model)
        pad = self.tokenizer.id_of("pad_token")
        self.pad = pad if pad is not None else (self.stop[0] if self.stop else 0)
        # transformers takes missing settings from here; a repetition penalty, for example, would change greedy answers
        model.generation_config = transformers.GenerationConfig(eos_token_id=self.stop or None, pad_token_id=self.pad)

    @functools.cached_property
    def encode_prompt(self) -> Callable[[Sequence[sftrun.Message]], list[int]]:
        """The function from messages to ids, with the generation prompt at the end."""
        return sftrun.data.prompt_encoder(self.recipe.model)

    def encode(self, source: str | Sequence[sftrun.Message]) -> list[int]:
        if isinstance(source, str):
            return list(self.tokenizer.encode([source])[0].ids)
        return self.encode_prompt(source)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)

    def generate(self, prompts: Sequence[Sequence[int]], decoding: sftrun.types.Decoding) -> list[list[int]]:
        by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        answers: list[list[int]] = [[] for _ in prompts]
        with torch.random.fork_rng(_gpus(self.model)):
            torch.manual_seed(decoding.seed)
            for batch in in_batches(by_length, decoding.batch_size):
                continuations = self._generate([prompts[index] for index in batch], decoding)
                for index, answer in zip(batch, continuations, strict=True):
                    answers[index] = answer
        return answers

    @torch.inference_mode()
    def _generate(self, prompts: list[Sequence[int]], decoding: sftrun.types.Decoding) -> list[list[int]]:
        width = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[self.pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        device = self.model.device
        generated = self.model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=self._settings(decoding),
            stopping_criteria=[StopTexts(decoding.stop, self.decode, width)] if decoding.stop else None,
            use_cache=True,
        )
        return [self._until_stop(row, decoding.stop) for row in generated[:, width:].tolist()]

    def _settings(self, decoding: sftrun.types.Decoding) -> Any:
        sampled: dict[str, Any] = {"do_sample": False}
        if decoding.temperature > 0:
            # 0 and 1 switch off transformers' own defaults (the top 50 tokens)
            top = {"top_k": decoding.top_k or 0, "top_p": decoding.top_p or 1.0}
            sampled = {"do_sample": True, "temperature": decoding.temperature, **top}
        return transformers.GenerationConfig(
            max_new_tokens=decoding.max_new_tokens, eos_token_id=self.stop or None, pad_token_id=self.pad, **sampled
        )

    def _until_stop(self, ids: list[int], stop: Sequence[str]) -> list[int]:
        ids = next((ids[:at] for at, token in enumerate(ids) if token in self.stop), ids)
        text = self.decode(ids) if stop else ""
        ends = [at for each in stop if (at := text.find(each)) >= 0]
        return self.encode(text[: min(ends)]) if ends else ids

    @torch.inference_mode()
    def loglikelihood(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], batch_size: int = 16
    ) -> list[sftrun.types.Likelihood]:
        """Returns log-likelihoods; raises UserError for an empty context, which predicts no first token."""
        if any(not context for context, _ in pairs):
            raise sftrun.UserError("a log-likelihood needs a context of at least one token")
        by_length = sorted(range(len(pairs)), key=lambda index: -len(pairs[index][0]) - len(pairs[index][1]))
        by_index: dict[int, sftrun.types.Likelihood] = {}
        for batch in in_batches(by_length, batch_size):
            rows = [[*pairs[index][0], *pairs[index][1]] for index in batch]
            logits = self._logits(rows)
            for row, index in enumerate(batch):
                start, stop = len(pairs[index][0]) - 1, len(rows[row]) - 1
                by_index[index] = _likelihood(logits[row, start:stop], pairs[index][1])
        return [by_index[index] for index in range(len(pairs))]

    def _logits(self, rows: list[list[int]]) -> torch.Tensor:
        """Returns the logits ([rows, longest, vocabulary]) of rows, padded on the right."""
        width = max(map(len, rows))
        device = self.model.device
        ids = torch.tensor([row + [self.pad] * (width - len(row)) for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        logits: torch.Tensor = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return logits

    def losses(self, split: str) -> sftrun.types.LossSums | None:
        file = self.run.prepared / f"{split}.arrow"
        if not file.is_file():
            return None
        samples = sftrun.data.Samples(file)
        rows = (samples.arrays(row) for row in range(len(samples)))
        return loss_sums(self.model, rows, self.batch_size, self.score)


class StopTexts(transformers.StoppingCriteria):  # type: ignore[misc]
    """A stopping criterion: a row ([tokens]) ends when its answer, from token `start`, contains one of the texts."""

    def __init__(self, texts: Sequence[str], decode: Callable[[Sequence[int]], str], start: int) -> None:
        self.texts, self.decode, self.start = texts, decode, start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **more: Any) -> torch.Tensor:
        answers = [self.decode(row) for row in input_ids[:, self.start :].tolist()]
        ended = [any(text in answer for text in self.texts) for answer in answers]
        return torch.tensor(ended, device=input_ids.device)


def _likelihood(logits: torch.Tensor, wanted: Sequence[int]) -> sftrun.types.Likelihood:
    """Returns the log-likelihood of tokens from the logits ([tokens, vocabulary]) that predict them."""
    ids = torch.tensor(list(wanted), dtype=torch.long, device=logits.device)
    each = logits.float().log_softmax(-1).gather(1, ids[:, None])[:, 0]
    return sftrun.types.Likelihood(float(each.sum()), each.tolist(), bool((logits.argmax(-1) == ids).all()))


def _gpus(model: Any) -> list[Any]:
    return [model.device] if model.device.type == "cuda" else []


@torch.inference_mode()
def loss_sums(model: Any, rows: Iterable[tuple[Any, Any]], batch_size: int, score: Score) -> sftrun.types.LossSums:
    """Returns sums over the trained tokens of rows (ids and labels, [tokens]), whatever the batches."""
    tokens, loss, correct = 0, 0.0, 0
    for batch in in_batches(rows, batch_size):
        width = max(len(ids) for ids, _ in batch)
        columns = {
            "input_ids": [pad(ids, width, 0) for ids, _ in batch],
            "attention_mask": [pad(np.ones(len(ids), np.int64), width, 0) for ids, _ in batch],
            "labels": [pad(labels, width, sftrun.data.IGNORED) for _, labels in batch],
        }
        tensors = {name: torch.from_numpy(np.stack(each)).long() for name, each in columns.items()}
        sums = score(model, {name: each.to(model.device) for name, each in tensors.items()})
        tokens += int((tensors["labels"][:, 1:] != sftrun.data.IGNORED).sum())
        loss, correct = loss + sums[0], correct + sums[1]
    return sftrun.types.LossSums(tokens, loss, correct)


def in_batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yields lists of `size` items; the last one may be shorter."""
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
