"""A whole training backend without torch: the next token depends on the one before alone. For tests of the kit."""

import math
import random
import signal

import numpy as np

import sftrun
from sftrun import events
from sftrun.data import Samples, load_tokenizer, prompt_encoder

SPEED = 100  # times the learning rate of a recipe, which is one for transformers
HONOURS = {
    *("train.max_steps", "train.learning_rate", "train.grad_accum", "train.eval_strategy", "train.eval_steps"),
    *("train.save_strategy", "train.save_steps", "train.logging_steps", "train.precision", "train.scheduler"),
    *("train.warmup", "train.optimizer", "train.max_grad_norm", "packing.strategy", "tuning.mode"),
}


class Bigram:
    """Trains a table of logits ([vocabulary, vocabulary]) by gradient descent; tests break it by overriding a part."""

    honours = frozenset(HONOURS)

    def train(self, work):
        t, run = work.recipe.train, work.run
        samples = list(Samples(run.prepared / "train.arrow"))
        size = t.batch_size * t.grad_accum
        per_epoch = math.ceil(len(samples) / size)
        self.asked = False
        start, logits = self.resume(run, self.initial(work.recipe))
        if start:
            work.emit(events.Resumed(step=start))
        before = self.listen()
        try:
            for step in range(start + 1, t.max_steps + 1):
                epoch, place = divmod(step - 1, per_epoch)
                order = random.Random(f"{work.recipe.seed} {epoch}").sample(samples, len(samples))
                loss, gradient = self.step(logits, order[place * size :][:size], work.recipe)
                logits = logits - SPEED * t.learning_rate * gradient
                work.emit(events.Step(step=step, loss=loss))
                self.after_step(step, logits, work)
        finally:
            signal.signal(signal.SIGTERM, before)
        self.save(logits, work)

    def initial(self, recipe):
        size = load_tokenizer(recipe.model).engine.get_vocab_size(with_added_tokens=True)
        return np.random.default_rng(recipe.seed).normal(0, 0.1, (size, size))

    def listen(self):
        def note(number, frame):
            self.asked = True

        return signal.signal(signal.SIGTERM, note)

    def step(self, logits, rows, recipe):
        """Returns the loss of an optimizer step, and its gradient."""
        return loss_and_gradient(logits, [pair for row in rows for pair in self.trained(row)])

    def trained(self, row):
        """Returns each trained token of a row, after the token before it."""
        return [(row.ids[at - 1], row.ids[at]) for at in range(1, len(row.ids)) if row.trained[at]]

    def after_step(self, step, logits, work):
        t = work.recipe.train
        if t.eval_steps and step % t.eval_steps == 0:
            sums = Model(logits, work).losses("val")
            work.emit(events.Eval(step=step, loss=sums.loss / sums.tokens))
        if self.asked or (t.save_steps and step % t.save_steps == 0):
            work.run.checkpoints.mkdir(exist_ok=True)
            np.save(work.run.checkpoints / f"{step:04}.npy", logits)
            work.emit(events.Checkpoint(step=step))
        if self.asked:
            raise sftrun.errors.Interrupted

    def resume(self, run, logits):
        saved = sorted(run.checkpoints.glob("*.npy"))
        return (int(saved[-1].stem), np.load(saved[-1])) if saved else (0, logits)

    def save(self, logits, work):
        work.run.model.mkdir()
        np.save(work.run.model / "logits.npy", logits)
        load_tokenizer(work.recipe.model).save(work.run.model)

    def load(self, work):
        logits = self.initial(work.recipe) if work.which == "base" else np.load(work.run.model / "logits.npy")
        return Model(logits, work)


class Model:
    """A loaded table."""

    def __init__(self, logits, work):
        self.log_probabilities = log_softmax(logits)
        self.run, self.tokenizer = work.run, load_tokenizer(work.recipe.model)
        self.encode_prompt = prompt_encoder(work.recipe.model)

    def encode(self, source):
        return list(self.tokenizer.encode([source])[0].ids) if isinstance(source, str) else self.encode_prompt(source)

    def decode(self, ids):
        return self.tokenizer.decode(ids)

    def generate(self, prompts, decoding):
        draw = np.random.default_rng(decoding.seed)
        return [self._answer(prompt[-1], decoding, draw) for prompt in prompts]

    def _answer(self, last, decoding, draw):
        made = []
        for _ in range(decoding.max_new_tokens):
            row = self.log_probabilities[last]
            last = int(draw.choice(len(row), p=np.exp(row)) if decoding.temperature else row.argmax())
            if any(stop in self.decode([*made, last]) for stop in decoding.stop):
                break
            made.append(last)
        return made

    def loglikelihood(self, pairs, batch_size=16):
        found = []
        for context, ids in pairs:
            before = [context[-1], *ids[:-1]]
            each = self.log_probabilities[before, list(ids)].tolist()
            greedy = self.log_probabilities[before].argmax(-1).tolist() == list(ids)
            found.append(sftrun.types.Likelihood(sum(each), each, greedy))
        return found

    def losses(self, split):
        file = self.run.prepared / f"{split}.arrow"
        if not file.is_file():
            return None
        pairs = [pair for row in Samples(file) for pair in Bigram().trained(row)]
        first, second = map(list, zip(*pairs, strict=True))
        correct = self.log_probabilities[first].argmax(-1) == second
        loss = -self.log_probabilities[first, second].sum()
        return sftrun.types.LossSums(tokens=len(pairs), loss=float(loss), correct=int(correct.sum()))


def loss_and_gradient(logits, pairs):
    """Returns the mean loss of pairs of tokens, and its gradient."""
    first, second = map(list, zip(*pairs, strict=True))
    log_probabilities = log_softmax(logits[first])
    slope = np.exp(log_probabilities)
    slope[range(len(pairs)), second] -= 1
    gradient = np.zeros_like(logits)
    np.add.at(gradient, first, slope / len(pairs))
    return float(-log_probabilities[range(len(pairs)), second].mean()), gradient


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
