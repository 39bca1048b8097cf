"""A step leaves its device as seldom as it can, and never mixes what is there with what is not."""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from torch.utils import backend_registration

from sftrun.training import batches
from sftrun.training.model import attention, head

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"), reason="needs torch's python devices"
)

WORDS = 96
USUAL = {"vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "pad_token_id": 0}
USUAL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
MODELS = {"llama": ("LlamaConfig", {}), "mistral": ("MistralConfig", {"sliding_window": 4})}
LENGTHS = (20, 9, 15)


def built(name):
    config, more = MODELS[name]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**USUAL, **more)).train()
    attention.isolate(model)
    head.patch_forward(model)
    return model


def batch(packed):
    draw = torch.Generator().manual_seed(1)
    rows = []
    for length in LENGTHS:
        ids = torch.randint(1, WORDS, (length,), generator=draw).numpy()
        labels = ids.copy()
        labels[: length // 2] = -100
        rows.append({"input_ids": ids, "labels": labels, "seq_lengths": [length]})
    return head.collate_scored(batches.flatten_packs if packed else batches.PaddingCollator(0), rows)


def step(model, given, device):
    """The loss and the gradients of a step on a device."""
    model.to(device)
    there = {name: each.to(device) for name, each in given.items() if name != "labels"}
    made = model(**there, scored=given["labels"].to(device), use_cache=False)["loss"]
    made.backward()
    return [made, *(each.grad for each in model.parameters())]


def compared(name, packed):
    """How far a step on a device is from one on the CPU, and how often it has waited for the device."""
    from pretend import NAME, Device

    expected = step(built(name), batch(packed), "cpu")
    with Device() as device:
        model, given = built(name), batch(packed)
        device.waits.clear()
        made = step(model, given, NAME)
        waits = dict(device.waits)
        far = max(
            float((each.detach().to("cpu") - other).abs().max()) for each, other in zip(made, expected, strict=True)
        )
    return {"far": far, "waits": waits}


def mixed():
    """What is said of a tensor that was left on the CPU."""
    from pretend import NAME, Device

    with Device(), pytest.raises(AssertionError) as caught:
        torch.ones(3, device=NAME) + torch.ones(3)
    return str(caught.value)


CASES = {f"{name} {kind}": (name, kind == "packed") for name in MODELS for kind in ("packed", "padded")}


@pytest.fixture(scope="module")
def seen():
    """All cases, in a process that has the device."""
    said = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_a_step_on_a_device_is_that_on_the_cpu_and_waits_only_to_find_sequences_and_padding(seen, case):
    assert seen[case]["far"] < 1e-5
    # transformers looks whether a row is packed or padded, and the search for sequences reads where they start
    assert sum(seen[case]["waits"].values()) <= 2, seen[case]["waits"]


def test_a_tensor_that_was_left_on_the_cpu_is_noticed(seen):
    assert "mixes tensors of the device with some of the CPU" in seen["mixed"]


if __name__ == "__main__":
    print(json.dumps({**{case: compared(*about) for case, about in CASES.items()}, "mixed": mixed()}))
