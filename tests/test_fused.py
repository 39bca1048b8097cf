"""Kernels of others for the head and its cross-entropy, run on the CPU by Triton's interpreter."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
import transformers

NEEDED = ("triton", "liger_kernel")
HERE = all(find_spec(name) for name in NEEDED)
USUAL = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "pad_token_id": 0}
USUAL |= {"num_attention_heads": 4, "num_key_value_heads": 2}
ADAPTERS = {
    "all of it": None,
    "a frozen head": {"target_modules": ["q_proj"]},
    "a head in full": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "new tokens": {
        "target_modules": ["q_proj"],
        "trainable_token_indices": {"embed_tokens": [3], "lm_head": [3]},
    },
}


def built(adapter=None, config="LlamaConfig", **more):
    import peft

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**USUAL, **more))
    return peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=4, **adapter)) if adapter else model


def stepped(model, kernel, trained):
    """The loss and the gradients of a row of which so many tokens are trained."""
    from sftrun.training.model import head

    head.patch_forward(model, kernel)
    model.zero_grad()
    ids = torch.arange(1, 18)[None]
    labels = ids.where(torch.arange(17) < trained, -100)
    loss = model(input_ids=ids, scored=labels, use_cache=False)["loss"]
    loss.backward()
    return [loss.detach(), *(each.grad for each in model.parameters() if each.grad is not None)]


def recipe(name, precision="fp32"):
    from sftrun.recipe.model import ModelOptions, Recipe, TrainOptions

    train = TrainOptions(cross_entropy=name, precision=precision)
    return Recipe(model=ModelOptions(name="sftrun/tiny"), source="jsonl", train=train)


def differences(adapter):
    """How far liger's loss and gradients are from those of the model's own head."""
    from sftrun.training.model import fused

    model = built(adapter)
    kernel = fused.load_kernel(model, recipe("liger"))
    pairs = zip(stepped(model, None, 9), stepped(model, kernel, 9), strict=True)
    nothing = max(float(each.abs().max()) for each in stepped(model, kernel, 0))
    return [max(float((one - other).abs().max()) for one, other in pairs), nothing]


def refusal(name, precision="fp32", **more):
    """What is said of a head that a kernel does not compute."""
    from sftrun import UserError
    from sftrun.training.model import fused

    with pytest.raises(UserError) as caught:
        fused.load_kernel(built(**more), recipe(name, precision))
    return str(caught.value)


@pytest.fixture(scope="module")
def seen():
    """What liger does, in a process whose kernels are interpreted."""
    if not HERE:
        pytest.skip("needs triton and liger-kernel")
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    said = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=False, env=env)
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout.splitlines()[-1])


@pytest.mark.parametrize("trained", ADAPTERS)
def test_liger_gives_the_loss_and_the_gradients_of_the_models_own_head(seen, trained):
    far, nothing = seen[trained]
    assert far < 1e-5
    assert nothing == 0  # where no token is trained


def test_a_head_that_liger_does_not_compute_is_refused(seen):
    assert "liger does not reproduce this model's head: its gradient is" in seen["scaled"]


def test_what_a_kernel_cannot_compute_in_is_refused():
    said = refusal("cut-cross-entropy")
    assert "its gradient is computed in bf16 or fp16, and train.precision is fp32" in said


if __name__ == "__main__":
    scaled = refusal("liger", config="CohereConfig", logit_scale=0.3)
    print(json.dumps({**{name: differences(adapter) for name, adapter in ADAPTERS.items()}, "scaled": scaled}))
