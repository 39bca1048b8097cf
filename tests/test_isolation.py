"""Sequences that share a row do not see each other, and a model of which that is not true is refused."""

import functools
import itertools

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from sftrun import UserError
from sftrun.training.batches import flatten_packs
from sftrun.training.model import attention, isolation

pytestmark = pytest.mark.older

LENGTHS = (17, 1, 9, 23)
WORDS, WINDOW = 96, 5
SMALL = {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
USUAL = {**SMALL, "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0}
LAYERS = ["sliding_attention", "full_attention"]
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
GPT = {"vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4}

EXACT = {
    "llama": ("LlamaConfig", USUAL),
    "qwen2": ("Qwen2Config", USUAL),
    "qwen3": ("Qwen3Config", {**USUAL, "head_dim": 8}),
    "mistral": ("MistralConfig", {**USUAL, "sliding_window": WINDOW}),
    "phi3": ("Phi3Config", USUAL),
    "gemma": ("GemmaConfig", {**USUAL, "head_dim": 8}),
    "gemma2": ("Gemma2Config", {**USUAL, "head_dim": 8, "sliding_window": WINDOW}),
    "gemma3": ("Gemma3TextConfig", {**USUAL, "head_dim": 8, "sliding_window": WINDOW, "layer_types": LAYERS}),
    "gpt2": ("GPT2Config", {**GPT, "n_positions": 64}),
    "gpt-neox": ("GPTNeoXConfig", {**SMALL, "intermediate_size": 64, "max_position_embeddings": 64}),
    "qwen3-moe": (
        "Qwen3MoeConfig",
        {**USUAL, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    ),
}
LEAKING = {
    "bloom": ("BloomConfig", {"vocab_size": WORDS, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "opt": ("OPTConfig", {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 64}),
    "mamba": ("MambaConfig", {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
    "qwen3.5": (
        "Qwen3_5TextConfig",
        {**USUAL, **LINEAR, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"]},
    ),
    "lfm2": ("Lfm2Config", {**USUAL, "layer_types": ["conv", "full_attention"]}),
}
ONLY_EAGER = {"gemma2"}  # its softcap is not in sdpa


@functools.cache
def model(name):
    config, options = {**EXACT, **LEAKING}[name]
    if not hasattr(transformers, config):
        pytest.skip(f"transformers {transformers.__version__} has no {config}")
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(getattr(transformers, config)(**options)).eval()


@functools.cache
def sequences():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, WORDS, (length,), generator=generator) for length in LENGTHS]


def pack():
    ids = np.concatenate([each.numpy() for each in sequences()])
    return flatten_packs([{"input_ids": ids, "labels": ids.copy(), "seq_lengths": list(LENGTHS)}])


def token_losses(made, row):
    """The loss of each token that has a label ([tokens]), 0 for the others."""
    logits = made.logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, row["labels"][0, 1:], reduction="none", ignore_index=-100)


def read(model, row, **more):
    where = {name: row[name].to(model.device) for name in ("input_ids", "position_ids") if name not in more}
    if "inputs_embeds" in more:
        del where["input_ids"]
    return model(**where, **more, use_cache=False)


def attending(name, how):
    chosen = model(name)
    if how == "ours":
        assert attention.isolate(chosen) == (name not in ONLY_EAGER)
    else:
        chosen.set_attn_implementation("eager")
    return chosen


@pytest.mark.parametrize("how", ["ours", "eager"])
@pytest.mark.parametrize("name", EXACT)
def test_the_loss_of_a_sequence_is_the_same_packed_and_alone(name, how):
    chosen, row = attending(name, how), pack()
    isolation.check_isolation(chosen, "fp32")
    with torch.no_grad():
        packed = [each.sum().item() for each in token_losses(read(chosen, row), row).split([16, 1, 9, 23])]
        alone = []
        for ids in sequences():
            logits = chosen(input_ids=ids[None], use_cache=False).logits[0]
            alone.append(torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="sum").item())
    assert packed == pytest.approx(alone, abs=1e-5 * 23)


@pytest.mark.parametrize("how", ["ours", "eager"])
@pytest.mark.parametrize("name", EXACT)
def test_a_sequence_has_exactly_no_gradient_in_its_neighbours(name, how):
    chosen, row = attending(name, how), pack()
    embedded = chosen.get_input_embeddings()(row["input_ids"]).detach().requires_grad_()
    losses = token_losses(read(chosen, row, inputs_embeds=embedded), row)
    end = np.cumsum(LENGTHS)
    for start, stop in zip(end - LENGTHS, end, strict=True):
        own = losses[start : stop - 1].sum() if stop - start > 1 else losses[start:start].sum()
        (slope,) = torch.autograd.grad(own, embedded, retain_graph=True)
        outside = torch.cat([slope[0, :start], slope[0, stop:]])
        assert not outside.any()
        assert slope[0, start:stop].any() == (stop - start > 1)


@pytest.mark.parametrize("name", LEAKING)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_whose_sequences_see_each_other_is_refused(name, precision):
    chosen = model(name)
    attention.isolate(chosen)
    with pytest.raises(UserError, match="cannot be trained on packed rows") as caught:
        isolation.check_isolation(chosen, precision)
    (problem,) = caught.value.problems
    assert problem.path == ("packing", "strategy")
    assert "set packing: {strategy: none}" in problem.hint


def test_positions_that_do_not_start_again_are_refused():
    class Unplaced(torch.nn.Module):
        """A model that counts positions from the start of the row."""

        device, forward_of = torch.device("cpu"), model("llama")
        config = forward_of.config

        def get_input_embeddings(self):
            return self.forward_of.get_input_embeddings()

        def forward(self, input_ids, position_ids, use_cache):
            row = self.forward_of.get_input_embeddings()(input_ids)
            return type("Made", (), {"logits": row.cumsum(-1) * torch.arange(row.shape[1])[None, :, None]})

    with pytest.raises(UserError, match="packed sequences have other logits than separate ones"):
        isolation.check_isolation(Unplaced(), "fp32")


def test_the_check_leaves_no_trace():
    chosen = model("gpt2").train()
    before = torch.random.get_rng_state()
    attention.isolate(chosen)
    isolation.check_isolation(chosen, "fp32")
    assert chosen.training
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(parameter.grad is None for parameter in chosen.parameters())
    assert not chosen.get_input_embeddings()._forward_hooks
    chosen.eval()


def test_no_mask_of_length_by_length_is_made():
    chosen, seen = attending("llama", "ours"), []
    hook = chosen.model.layers[0].register_forward_pre_hook(
        lambda _module, _args, given: seen.append(given["attention_mask"]), with_kwargs=True
    )
    read(chosen, pack())
    hook.remove()
    assert seen[0].lengths == list(LENGTHS)
    assert seen[0].band is None


def test_activations_that_are_computed_again_stay_apart():
    slopes = []
    for again in (False, True):
        chosen, row = attending("mistral", "ours").train(), pack()
        if again:
            chosen.gradient_checkpointing_enable()
        token_losses(read(chosen, row), row).sum().backward()
        slopes.append([parameter.grad.clone() for parameter in chosen.parameters()])
        chosen.gradient_checkpointing_disable()
        chosen.zero_grad()
        chosen.eval()
    assert all(torch.equal(one, other) for one, other in zip(*slopes, strict=True))


@pytest.mark.parametrize("name", ["qwen3", "mistral"])
def test_padded_batches_and_generation_are_those_of_sdpa(name):
    chosen = model(name)
    ids = torch.stack([sequences()[0], sequences()[3][:17]])
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    made = []
    for how in ("sdpa", "ours"):
        chosen.set_attn_implementation("sdpa")
        if how == "ours":
            attention.isolate(chosen)
        with torch.no_grad():
            logits = chosen(input_ids=ids, attention_mask=mask).logits
            answers = chosen.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0
            )
        made.append((logits, answers))
    assert torch.equal(made[0][0], made[1][0])
    assert torch.equal(made[0][1], made[1][1])


@pytest.mark.parametrize("window", [None, 5])
def test_torchs_kernel_is_also_that_of_torch_2_11_which_wants_as_many_heads_of_keys(monkeypatch, window):
    from torch.nn.attention import varlen

    def of_2_11(query, key, value, starts, *longest, scale=None, window_size=()):
        assert query.shape == key.shape == value.shape
        left = window_size[0] if window_size[0] >= 0 else longest[-1]
        parts = []
        for start, stop in itertools.pairwise(starts.tolist()):
            at = torch.arange(stop - start)
            seen = (at[:, None] >= at) & (at[:, None] - at <= left)
            heads = (tensor[start:stop].transpose(0, 1) for tensor in (query, key, value))
            parts.append(torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=seen, scale=scale))
        return torch.cat(parts, 1).transpose(0, 1)

    monkeypatch.setattr(varlen, "varlen_attn", of_2_11)
    q, k, v = (torch.randn(1, heads, 12, 8) for heads in (4, 2, 2))
    starts = torch.tensor([0, 9, 12], dtype=torch.int32)
    index = torch.arange(9)
    band = None if window is None else (index[:, None] >= index) & (index[:, None] - index < window)
    row = attention.Sequences([9, 3], starts, window, band)
    expected, _ = attention.attend(torch.nn.Module(), q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), row)
    torch.testing.assert_close(attention._torch_kernel()(q, k, v, row, None), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral"])
def test_on_a_gpu_one_kernel_reads_all_sequences(name):
    chosen, row = attending(name, "ours"), pack()
    chosen = chosen.to("cuda", torch.bfloat16)
    try:
        assert attention._kernel(True) is not None
        isolation.check_isolation(chosen, "bf16")
        packed = read(chosen, row).logits[0].float()
        alone = torch.cat(
            [chosen(input_ids=ids[None].cuda(), use_cache=False).logits[0].float() for ids in sequences()]
        )
        assert (packed - alone).abs().max() < 0.05 * alone.abs().max()
    finally:
        chosen.to("cpu", torch.float32)
