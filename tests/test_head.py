"""The head sees trained positions alone, and loss and gradients are those of all logits."""

import functools

import peft
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from sftrun.training import batches
from sftrun.training.model import attention, head

pytestmark = pytest.mark.older

WORDS = 96
USUAL = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 2,
}
GPT = {"vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1}
STILL = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "eos_token_id": 2}
MODELS = {
    "llama": ("LlamaConfig", USUAL),
    "qwen3": ("Qwen3Config", {**USUAL, "head_dim": 8, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2Config", {**USUAL, "head_dim": 8, "final_logit_softcapping": 2.0}),
    "gpt2": ("GPT2Config", {**GPT, **STILL}),
    "granite": ("GraniteConfig", {**USUAL, "logits_scaling": 3.0}),
    "cohere": ("CohereConfig", {**USUAL, "logit_scale": 0.3}),
}
ADAPTERS = {
    "head saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "adapter on the head": {"target_modules": ["q_proj", "lm_head"]},
    "new tokens": {
        "target_modules": ["q_proj"],
        "trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [3, 5]},
    },
    "frozen head": {"target_modules": ["q_proj"]},
}


@functools.cache
def built(name):
    config, options = MODELS[name]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(getattr(transformers, config)(**options)).train()


def rows():
    """Three rows, of which some positions are trained."""
    draw = torch.Generator().manual_seed(1)
    found = []
    for length, trained in ((20, 6), (9, 8), (15, 2)):
        ids = torch.randint(1, WORDS, (length,), generator=draw)
        labels = ids.clone()
        labels[: length - trained] = -100
        found.append({"input_ids": ids.numpy(), "labels": labels.numpy()})
    return found


def batch(packed):
    if not packed:
        return batches.PaddingCollator(0)(rows())
    row = {
        name: torch.cat([torch.from_numpy(each[name]) for each in rows()]).numpy() for name in ("input_ids", "labels")
    }
    return batches.flatten_packs([{**row, "seq_lengths": [20, 9, 15]}])


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def of_all_logits(model, given):
    labels = given["labels"][:, 1:]
    logits = model(**{k: v for k, v in given.items() if k != "labels"}, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.reshape(-1, WORDS), labels.flatten(), reduction="sum")


def of_the_head(model, given):
    return model(**{k: v for k, v in given.items() if k != "labels"}, scored=given["labels"], use_cache=False)["loss"]


def agree(model, given):
    count = int((given["labels"][:, 1:] != -100).sum())
    whole = of_all_logits(model, given) / count
    wanted = gradients(model, whole)
    found = of_the_head(model, given) / count
    assert found.item() == pytest.approx(whole.item(), abs=1e-6)
    got = gradients(model, found)
    assert got.keys() == wanted.keys()
    for name, each in wanted.items():
        torch.testing.assert_close(got[name], each, rtol=0, atol=1e-6)
    assert any(each.abs().max() > 1e-3 for each in wanted.values())


@pytest.mark.parametrize("at_once", [WORDS * 4 * 5, 2**29], ids=["in parts", "at once"])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradient_are_those_of_all_logits(name, packed, at_once, monkeypatch):
    monkeypatch.setattr(head, "PART_BYTES", at_once)
    model = built(name)
    if packed:
        attention.isolate(model)
    head.patch_forward(model)
    agree(model, batch(packed))


@pytest.mark.parametrize("kind", ADAPTERS)
def test_whatever_an_adapter_does_to_the_head_is_trained(kind):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(transformers.LlamaConfig(**USUAL))
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", r=4, **ADAPTERS[kind]))
    with torch.no_grad():  # an adapter is nothing at first, and so is half of its gradient
        for each in model.parameters():
            each.add_(0.2 * torch.randn_like(each)) if each.requires_grad else None
    head.patch_forward(model)
    agree(model, batch(packed=False))


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_only_trained_positions_reach_the_head(name):
    model, seen = built(name), []
    head.patch_forward(model)
    hook = model.lm_head.register_forward_pre_hook(lambda _module, given: seen.append(given[0].shape[-2]))
    of_the_head(model, batch(packed=False))
    hook.remove()
    assert sum(seen) == 6 + 8 + 2


def test_a_batch_with_nothing_trained_has_a_loss_and_a_gradient_of_nothing():
    model, given = built("llama"), batch(packed=False)
    head.patch_forward(model)
    given["labels"] = torch.full_like(given["labels"], -100)
    loss = of_the_head(model, given)
    assert loss.item() == 0
    assert not any(each.any() for each in gradients(model, loss).values())


def test_without_gradients_it_counts_what_was_argmax():
    model, given = built("llama"), batch(packed=False)
    head.patch_forward(model)
    labels = given.pop("labels")
    with torch.no_grad():
        found = model(**given, scored=labels, use_cache=False)
        guessed = model(**given, use_cache=False).logits[:, :-1].argmax(-1)
    assert found["correct"] == ((guessed == labels[:, 1:]) & (labels[:, 1:] != -100)).sum()


def test_a_router_of_experts_keeps_its_own_loss():
    options = {**USUAL, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(transformers.Qwen3MoeConfig(**options))
    given = batch(packed=False)
    labels = given.pop("labels")
    alone = model(**given, use_cache=False, output_router_logits=True).aux_loss
    head.patch_forward(model)
    found = model(**given, scored=labels, use_cache=False, output_router_logits=True)
    assert found["aux_loss"].item() == pytest.approx(alone.item(), abs=1e-6)
    assert alone.item() > 0


def test_the_logits_are_in_memory_twice_at_most():
    from sftrun.training.memory.tracker import MemoryTracker

    model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**{**USUAL, "vocab_size": 20_000}))
    head.patch_forward(model)
    ids = torch.arange(1, 61)[None]
    tracker = MemoryTracker("step", model.parameters())
    with tracker:
        model(input_ids=ids, scored=ids, use_cache=False)["loss"]
    logits, gradient = 59 * 20_000 * 4, 32 * 20_000 * 4  # of the head
    assert 2 * logits < tracker.most < 2.5 * logits + gradient
