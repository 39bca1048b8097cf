"""Promises of a loaded model, which evaluators use."""

import math
from typing import Any

from sftrun import kinds
from sftrun.runs.directory import RunDir
from sftrun.types import Decoding, Likelihood, LossSums

CLOSE = 1e-3  # relative and absolute error; other batches, and kernels of low precision
TEXT = "Count to 3: 0 1 2 3"
QUESTIONS = ("Count to 3!", "Count to 7, and be quick about it!", "Hi!")


def check_model(model: kinds.Model, run: RunDir) -> None:
    """Raises AssertionError unless a model encodes, generates, and has consistent log-likelihoods and losses.

    The losses of the validation split must equal the log-likelihoods of its trained tokens.
    """
    ids = model.encode(TEXT)
    assert model.decode(ids) == TEXT, f"decode(encode({TEXT!r})) is {model.decode(ids)!r}"
    prompts = [model.encode([{"role": "user", "content": question}]) for question in QUESTIONS]
    assert all(prompts), "encode() of messages gives no tokens"
    _check_answers(model, prompts)
    _check_likelihoods(model, prompts[0], ids)
    assert model.losses("no such split") is None, "losses() of a split that does not exist must be None"
    _check_losses(model, run)


def _check_answers(model: kinds.Model, prompts: list[list[int]]) -> None:
    for decoding in (Decoding(max_new_tokens=6, batch_size=2), Decoding(max_new_tokens=6, temperature=1.0, seed=3)):
        answers = model.generate(prompts, decoding)
        how = "greedy" if decoding.temperature == 0 else "sampled with one seed"
        assert len(answers) == len(prompts), f"generate() gives {len(answers)} answers for {len(prompts)} prompts"
        longest = max(map(len, answers))
        assert longest <= 6, f"an answer has {longest} tokens, more than max_new_tokens=6"
        assert model.generate(prompts, decoding) == answers, f"answers ({how}) are not the same a second time"
    backwards = model.generate(prompts[::-1], Decoding(max_new_tokens=6, batch_size=2))
    answers = model.generate(prompts, Decoding(max_new_tokens=6, batch_size=2))
    assert backwards[::-1] == answers, "greedy answers depend on the order of the prompts, or are in another order"
    texts = [text for text in map(model.decode, answers) if text.strip()]
    for stop in [text.strip()[0] for text in texts][:1]:
        cut = model.generate(prompts, Decoding(max_new_tokens=6, stop=(stop,)))
        unstopped = [text for text in map(model.decode, cut) if stop in text]
        assert not unstopped, f"an answer has the stop text {stop!r}: {unstopped[0]!r}"


def _check_likelihoods(model: kinds.Model, context: list[int], ids: list[int]) -> None:
    half = len(ids) // 2
    first, second = ids[:half], ids[half:]
    pairs: list[Any] = [(context, ids), (context, first), ([*context, *first], second)]
    results = model.loglikelihood(pairs)
    assert len(results) == len(pairs), f"loglikelihood() gives {len(results)} results for {len(pairs)} pairs"
    for (_, wanted), each in zip(pairs, results, strict=True):
        assert isinstance(each, Likelihood), f"loglikelihood() must give Likelihoods, not {type(each).__name__}"
        assert len(each.tokens) == len(wanted), f"{len(each.tokens)} log-likelihoods for {len(wanted)} tokens"
        assert _close(sum(each.tokens), each.sum), f"a log-likelihood is {each.sum}, its tokens {each.tokens}"
        assert max(each.tokens) <= CLOSE, f"a log-likelihood is above 0: {max(each.tokens)}"
    parts = results[1].sum + results[2].sum
    assert _close(results[0].sum, parts), f"the log-likelihood of a text is {results[0].sum}, and of its halves {parts}"
    one_by_one = model.loglikelihood(pairs, batch_size=1)
    same = all(_close(each.sum, other.sum) for each, other in zip(results, one_by_one, strict=True))
    assert same, "log-likelihoods depend on the batch size"


def _check_losses(model: kinds.Model, run: RunDir) -> None:
    sums = model.losses("val")
    assert isinstance(sums, LossSums), f"losses('val') must be LossSums, not {type(sums).__name__}"
    tokens, likelihood = trained_likelihood(model, run, "val")
    assert sums.tokens == tokens, f"losses('val') counts {sums.tokens} trained tokens, and there are {tokens}"
    assert 0 <= sums.correct <= tokens, f"losses('val') has {sums.correct} of {tokens} tokens correct"
    message = f"losses('val') is {sums.loss / tokens:.6f} a token, but log-likelihoods give {-likelihood / tokens:.6f}"
    assert _close(sums.loss, -likelihood), message


def trained_likelihood(model: kinds.Model, run: RunDir, split: str) -> tuple[int, float]:
    """Returns the number of trained tokens of a split whose rows have one answer each, and their log-likelihood."""
    from sftrun.data import Samples

    pairs = []
    for sample in Samples(run.prepared / f"{split}.arrow"):
        trained = [place for place, flag in enumerate(sample.trained) if flag]
        assert trained == list(range(trained[0], trained[-1] + 1)), "the trained tokens of a row are apart"
        pairs.append((sample.ids[: trained[0]], sample.ids[trained[0] : trained[-1] + 1]))
    return sum(len(ids) for _, ids in pairs), sum(each.sum for each in model.loglikelihood(pairs))


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=CLOSE, abs_tol=CLOSE)
