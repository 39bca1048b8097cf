"""What evaluators ask of a model: token ids, answers and log-likelihoods, of the embedded model."""

import json

import pytest
import torch

import sftrun
from sftrun.kinds import Loading
from sftrun.types import Decoding

ROWS = [{"user": f"What is {number}?", "assistant": f"It is {number}."} for number in range(8)]
MESSAGES = [{"role": "user", "content": "What is 3?"}]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    (folder / "recipe.yaml").write_text(
        "model: {name: sftrun/tiny, max_seq_len: 64}\n"
        f"source: {{use: jsonl, with: {{path: {folder / 'train.jsonl'}, val_share: 0.3}}}}\n"
        "tuning: {mode: full}\n"
    )
    return sftrun.prepare(folder / "recipe.yaml", out=folder / "run")


@pytest.fixture
def model(run):
    return sftrun.create("backend", "hf").load(Loading(recipe=run.recipe(), run=run, which="base"))


def greedy(model, ids, count):
    """Greedy decoding, one forward pass of the whole text a token."""
    ids = list(ids)
    for _ in range(count):
        with torch.inference_mode():
            logits = model.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        ids.append(int(logits.argmax()))
    return ids[-count:]


def test_messages_are_encoded_with_the_generation_prompt(model):
    ids = model.encode(MESSAGES)
    assert model.tokenizer.engine.decode(ids, skip_special_tokens=False) == (
        "<|im_start|>user\nWhat is 3?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert model.decode(model.encode("It is 3.")) == "It is 3."


def test_greedy_is_greedy_whatever_the_generation_config_of_the_model_asks_for(run, monkeypatch):
    from sftrun.training.model import load

    loaded = load.load_base

    def spoilt(*args, **kwargs):
        model = loaded(*args, **kwargs)
        settings = {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "do_sample": True, "top_k": 3, "num_beams": 2}
        for name, value in {**settings, "min_new_tokens": 7, "temperature": 9.0}.items():
            setattr(model.generation_config, name, value)
        return model

    monkeypatch.setattr(load, "load_base", spoilt)
    model = sftrun.create("backend", "hf").load(Loading(recipe=run.recipe(), run=run, which="base"))
    ids = model.encode(MESSAGES)
    answer = model.generate([ids], Decoding(max_new_tokens=12))[0]
    assert answer == [token for token in greedy(model, ids, 12) if token not in model.stop][: len(answer)]
    assert len(answer) == 12 or greedy(model, ids, 12)[len(answer)] in model.stop


def test_answers_do_not_depend_on_the_batch(model):
    prompts = [model.encode([{"role": "user", "content": "x" * length}]) for length in (1, 9, 4, 20)]
    one, all_at_once = (model.generate(prompts, Decoding(max_new_tokens=6, batch_size=size)) for size in (1, 4))
    assert one == all_at_once


def test_an_answer_ends_before_a_stop_text(model):
    ids = model.encode(MESSAGES)
    whole = model.decode(model.generate([ids], Decoding(max_new_tokens=16))[0])
    stop = whole[5:7]
    cut = model.decode(model.generate([ids], Decoding(max_new_tokens=16, stop=(stop, "never there")))[0])
    assert cut == whole[: whole.index(stop)]


def test_sampling_is_repeatable_by_its_seed(model):
    ids = model.encode(MESSAGES)
    drawn = [model.generate([ids], Decoding(max_new_tokens=20, temperature=2.0, seed=seed))[0] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert model.generate([ids], Decoding(max_new_tokens=8, temperature=1.0, top_k=1))[0] == greedy(model, ids, 8)


def test_the_log_likelihood_of_a_continuation_is_that_of_its_tokens_alone(model):
    context, answer = model.encode(MESSAGES), model.encode("It is 3.")
    first, empty, best = model.loglikelihood(
        [(context, answer), (context[:3], []), (context, greedy(model, context, 5))], batch_size=2
    )
    with torch.inference_mode():
        logits = model.model(input_ids=torch.tensor([context + answer]), use_cache=False).logits[0].float()
    each = logits.log_softmax(-1)[len(context) - 1 : -1].gather(1, torch.tensor(answer)[:, None])[:, 0]
    assert first.tokens == pytest.approx(each.tolist(), abs=1e-4)
    assert first.sum == pytest.approx(float(each.sum()), abs=1e-3)
    assert not first.greedy
    assert (empty.sum, empty.tokens, empty.greedy) == (0.0, [], True)
    assert best.greedy


def test_an_empty_context_predicts_nothing(model):
    with pytest.raises(sftrun.UserError, match="context of at least one token"):
        model.loglikelihood([([], [1, 2])])
