"""The kit for backends: a backend without torch passes it, and whatever breaks a promise does not."""

import itertools
import signal

import msgspec
import numpy as np
import pytest
from bigram import Bigram, Model, loss_and_gradient

import sftrun
from sftrun import events, testing
from sftrun.testing.model import check_model

COUNT = itertools.count()


def test_a_backend_without_torch_keeps_its_promises():
    testing.check_backend(Bigram())


def test_promises_about_keys_that_are_not_honoured_are_left_out():
    class Deaf(Bigram):
        """Takes no notice of signals, and packs nothing."""

        honours = Bigram.honours - {"packing.strategy", "train.save_strategy", "train.save_steps"}

        def listen(self):
            return signal.getsignal(signal.SIGTERM)

        def step(self, logits, rows, recipe):
            assert recipe.packing.strategy == "none"
            return super().step(logits, rows, recipe)

    testing.check_backend(Deaf())


class Misspelled(Bigram):
    honours = Bigram.honours | {"train.epoch"}


class Listed(Bigram):
    honours = ("train.max_steps",)


class Untyped(Bigram):
    def train(self, work):
        work.emit({"event": "step", "step": 1})


class Unreadable(Bigram):
    def train(self, work):
        work.emit(events.Step(step="one"))


class Silent(Bigram):
    def train(self, work):
        self.save(self.initial(work.recipe), work)


class Flat(Bigram):
    def step(self, logits, rows, recipe):
        return 1.0, super().step(logits, rows, recipe)[1]


class Infinite(Bigram):
    def step(self, logits, rows, recipe):
        return float("nan"), super().step(logits, rows, recipe)[1]


class Unsaved(Bigram):
    def save(self, logits, work):
        pass


class WithoutTokenizer(Bigram):
    def save(self, logits, work):
        super().save(logits, work)
        (work.run.model / "tokenizer.json").unlink()


class Untrained(Bigram):
    def load(self, work):
        return Model(self.initial(work.recipe), work)


class Rounded(Bigram):
    def save(self, logits, work):
        super().save(logits.round(0), work)


class Shuffled(Bigram):
    def step(self, logits, rows, recipe):
        loss, gradient = super().step(logits, rows, recipe)
        return loss + 1e-9 * next(COUNT), gradient


class Deaf(Bigram):
    def listen(self):
        before = super().listen()
        self.asked = False
        return before

    def after_step(self, step, logits, work):
        self.asked = False
        super().after_step(step, logits, work)


class Careless(Bigram):
    def after_step(self, step, logits, work):
        if self.asked:
            raise sftrun.errors.Interrupted
        super().after_step(step, logits, work)


class Forgetful(Bigram):
    def after_step(self, step, logits, work):
        super().after_step(step, logits.round(1), work)


class Restarting(Bigram):
    def train(self, work):
        def emit(event):
            if not isinstance(event, events.Resumed):
                work.emit(event)

        super().train(sftrun.kinds.Training(recipe=work.recipe, run=work.run, emit=emit))


class Greedy(Bigram):
    """Trains on every token."""

    def trained(self, row):
        return list(itertools.pairwise(row.ids))


class Leaking(Bigram):
    """Reports the loss of trained tokens, and learns from all."""

    def step(self, logits, rows, recipe):
        pairs = [pair for row in rows for pair in itertools.pairwise(row.ids)]
        return super().step(logits, rows, recipe)[0], loss_and_gradient(logits, pairs)[1]


class MeanOfMeans(Bigram):
    """Averages micro-batches, however many tokens each has."""

    def step(self, logits, rows, recipe):
        size = recipe.train.batch_size
        parts = [super(MeanOfMeans, self).step(logits, rows[at:][:size], recipe) for at in range(0, len(rows), size)]
        return tuple(sum(each) / len(parts) for each in zip(*parts, strict=True))


class Crossing(Bigram):
    """Lets packed rows see each other: the first token of a row is trained too."""

    def step(self, logits, rows, recipe):
        if recipe.packing.strategy == "none":
            return super().step(logits, rows, recipe)
        pairs = [pair for row in rows for pair in self.trained(row)] + [(2, row.ids[0]) for row in rows]
        return loss_and_gradient(logits, pairs)


BROKEN = {
    "honours names train.epoch, which is no recipe key": Misspelled,
    "honours must be a frozenset of recipe keys": Listed,
    "an event must be one of sftrun.events": Untyped,
    "cannot be read back": Unreadable,
    "emits no Step with a loss": Silent,
    "the loss does not fall": Flat,
    "a loss is not finite": Infinite,
    "left no model": Unsaved,
    "the tokenizer next to the model cannot be loaded": WithoutTokenizer,
    "it is not the one that was trained": Untrained,
    "what is saved is not what was trained": Rounded,
    "the same seed gives other losses": Shuffled,
    "train() does not stop on SIGTERM": Deaf,
    "the last checkpoint is of step 4, and SIGTERM came in step 5": Careless,
    "a resumed run has other losses than one that was never stopped": Forgetful,
    "must emit Resumed before its first Step": Restarting,
    "the loss of the first step is": Greedy,
    "tokens that are not trained change the loss": Leaking,
    "has another loss if it is split into train.batch_size=2": MeanOfMeans,
    "has another loss if it is packed": Crossing,
}


@pytest.mark.parametrize("reason", BROKEN)
def test_a_backend_that_breaks_a_promise_fails(reason):
    with pytest.raises(AssertionError) as caught:
        testing.check_backend(BROKEN[reason]())
    assert reason in str(caught.value)


def test_a_recipe_that_is_refused_is_said_with_the_way_out():
    with pytest.raises(AssertionError, match=r"the recipe of the check is refused; change it by overrides: .*qlora"):
        testing.check_backend(Bigram(), ["tuning.mode=qlora"])


class Forgets(Model):
    def encode(self, source):
        return super().encode(source)[:-1]


class Endless(Model):
    def generate(self, prompts, decoding):
        return [[5] * 9 for _ in prompts]


class Random(Model):
    def generate(self, prompts, decoding):
        return [[next(COUNT) % 300] for _ in prompts]


class Sorted(Model):
    def generate(self, prompts, decoding):
        return [[len(prompt)] for prompt in sorted(prompts, key=len)]


class Unstopped(Model):
    def generate(self, prompts, decoding):
        return super().generate(prompts, msgspec.structs.replace(decoding, stop=()))


class Short(Model):
    def loglikelihood(self, pairs, batch_size=16):
        return [msgspec.structs.replace(each, tokens=each.tokens[1:]) for each in super().loglikelihood(pairs)]


class Prefixed(Model):
    """Counts a token of its own before each continuation."""

    def loglikelihood(self, pairs, batch_size=16):
        found = super().loglikelihood(pairs)
        tokens = [[each.tokens[0] - 1, *each.tokens[1:]] for each in found]
        return [sftrun.types.Likelihood(sum(each), each, False) for each in tokens]


class Batched(Model):
    def loglikelihood(self, pairs, batch_size=16):
        found = super().loglikelihood(pairs)
        halved = [[each / 2 for each in one.tokens] for one in found]
        return [sftrun.types.Likelihood(sum(each), each, False) for each in halved] if batch_size == 1 else found


class Everywhere(Model):
    def losses(self, split):
        return super().losses("val")


class Whole(Model):
    def losses(self, split):
        sums = super().losses(split)
        return sums and msgspec.structs.replace(sums, loss=sums.loss * 2)


MODELS = {
    "decode(encode(": Forgets,
    "an answer has 9 tokens": Endless,
    "answers (greedy) are not the same a second time": Random,
    "depend on the order of the prompts": Sorted,
    "has the stop text": Unstopped,
    "log-likelihoods for": Short,
    "and of its halves": Prefixed,
    "log-likelihoods depend on the batch size": Batched,
    "of a split that does not exist must be None": Everywhere,
    "but log-likelihoods give": Whole,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a model that has learned a little."""
    from sftrun.testing.backend import LEARN
    from sftrun.testing.bench import Bench

    bench = Bench(Bigram(), [], tmp_path_factory.mktemp("bench"))
    return bench.trained({**LEARN, "train.max_steps": 40}).run


@pytest.mark.parametrize("reason", MODELS)
def test_a_model_that_breaks_a_promise_fails(run, reason):
    loading = sftrun.kinds.Loading(recipe=run.recipe(), run=run, which="tuned")
    logits = np.load(run.model / "logits.npy")
    check_model(Model(logits, loading), run)
    with pytest.raises(AssertionError) as caught:
        check_model(MODELS[reason](logits, loading), run)
    assert reason in str(caught.value)
