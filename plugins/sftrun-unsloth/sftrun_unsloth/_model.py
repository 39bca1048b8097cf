"""Loads models with unsloth, generates with them, and sums their losses."""

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from sftrun_unsloth._first import FastLanguageModel  # isort: skip

import torch
import transformers

import sftrun
from sftrun import tiny

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def precision(recipe: sftrun.Recipe) -> str:
    """The number format of the computation, with `auto` resolved for this machine."""
    wanted = recipe.train.precision
    gpu = torch.cuda.is_available()
    if wanted == "auto":
        return "bf16" if gpu and torch.cuda.is_bf16_supported() else "fp32"
    if wanted == "fp16" and not gpu:
        path = ("train", "precision")
        raise sftrun.UserError(
            sftrun.Problem("fp16 needs a GPU, and there is none", path=path, hint="use fp32 or auto")
        )
    return wanted


def base_location(recipe: sftrun.Recipe) -> str:
    """The folder or Hub id to load the base model from; the embedded model is made where the backend hf keeps it."""
    name = recipe.model.name
    if name != tiny.NAME:
        return name
    folder = sftrun.cache_folder() / "models" / f"tiny-{tiny.fingerprint()[:16]}-seed{recipe.seed}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
        tiny.save(making, recipe.seed)
        with contextlib.suppress(OSError):  # another process was first
            making.rename(folder)
    return str(folder)


def load_base(recipe: sftrun.Recipe) -> Any:
    """The base model: fp32 weights where they are trained in full, else 4 bits or the precision of the computation.

    Raises UserError where it cannot be loaded, or where unsloth would load something else.
    """
    location = base_location(recipe)
    if (Path(location) / "adapter_config.json").is_file():
        message = f"{location} holds an adapter, not a whole model"
        hint = "train it with the exporter unsloth-merged, and name its export/unsloth-merged"
        raise sftrun.UserError(sftrun.Problem(message, path=("model", "name"), hint=hint))
    if Path(location).is_dir():
        return load(location, recipe)
    commit = sftrun.load_tokenizer(recipe.model).folder.name  # the tokenizer of this commit has prepared the data
    return load(location, recipe, revision=commit)


def load(location: str, recipe: sftrun.Recipe, merged: bool = False, **also: Any) -> Any:
    """The model in a folder or on the Hub, an adapter on its base too, with unsloth's patches."""
    full, four_bit = recipe.tuning.mode == "full", recipe.tuning.mode == "qlora" and not merged
    try:
        model, tokens = FastLanguageModel.from_pretrained(
            location,
            max_seq_length=recipe.model.max_seq_len,
            dtype=torch.float32 if full else DTYPES[precision(recipe)],
            load_in_4bit=four_bit,
            full_finetuning=full,
            use_gradient_checkpointing=checkpointing(recipe),
            use_exact_model_name=True,  # else it may take another repository's weights than those named
            random_state=recipe.seed,
            **also,
        )
    except (OSError, ValueError, NotImplementedError) as error:
        message = f"unsloth cannot load the model {location}: {str(error).splitlines()[0]}"
        raise sftrun.UserError(sftrun.Problem(message, path=("model", "name"))) from error
    _check_loaded(model, tokens, recipe, four_bit)
    return model


def quantisation(recipe: sftrun.Recipe) -> dict[str, Any] | None:
    """How unsloth holds a 4-bit base, in the words of the backend bnb: so that the exporter merged finds it again."""
    if recipe.tuning.mode != "qlora":
        return None
    return {"bits": 4, "type": "nf4", "double_quant": True, "compute_dtype": "auto", "storage_dtype": "uint8"}


def checkpointing(recipe: sftrun.Recipe) -> "Literal['unsloth', False]":
    """What unsloth calls gradient checkpointing: its own kind, which keeps activations in main memory."""
    return "unsloth" if recipe.train.gradient_checkpointing else False


def _check_loaded(model: Any, tokens: Any, recipe: sftrun.Recipe, four_bit: bool) -> None:
    """Raises UserError where unsloth has silently loaded something else than it was asked for."""
    if four_bit != any(type(module).__name__ == "Linear4bit" for module in model.modules()):
        have = ("in 4 bits", "in 16 or 32 bits")[four_bit]
        message = f"unsloth has loaded {recipe.model.name} {have}, not as asked; bitsandbytes' 4 bits may not work here"
        raise sftrun.UserError(sftrun.Problem(message, path=("tuning", "mode")))
    ids, rows = sftrun.load_tokenizer(recipe.model).added, model.get_input_embeddings().weight.shape[0]
    if max(ids, default=0) >= rows:
        message = f"the tokenizer of {recipe.model.name} has more tokens than its model has embeddings ({rows})"
        raise sftrun.UserError(
            sftrun.Problem(message, path=("model", "name"), hint="use the backend hf, which adds them")
        )
    longest = min(tokens.model_max_length, getattr(model, "max_seq_length", None) or tokens.model_max_length)
    if longest < recipe.model.max_seq_len:
        message = f"{recipe.model.name} has {longest} positions, fewer than max_seq_len {recipe.model.max_seq_len}"
        raise sftrun.UserError(sftrun.Problem(message, path=("model", "max_seq_len"), hint=f"set it to {longest}"))


def load_tuned(recipe: sftrun.Recipe, run: sftrun.RunDir) -> Any:
    """The tuned model: whole weights, or the adapter on the base that it was trained on."""
    if not run.model.is_dir():
        raise sftrun.UserError(f"{run.path} has no trained model", hint="run its recipe first")
    if not (run.model / "adapter_config.json").is_file():
        return load(str(run.model), recipe)
    check_base(recipe, run.model)
    with tempfile.TemporaryDirectory() as folder:
        here = shutil.copytree(run.model, Path(folder) / "adapter")
        config = json.loads((here / "adapter_config.json").read_text("utf-8"))
        # unsloth loads the base that is named there, which may have moved
        config |= {"base_model_name_or_path": base_location(recipe)}
        (here / "adapter_config.json").write_text(json.dumps(config), "utf-8")
        return load(str(here), recipe)


def weights_hash(location: str) -> str | None:
    """A hash over the weight files of a local model folder; None for a model of the Hub."""
    folder = Path(location)
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(file.name.encode())
        with file.open("rb") as weights:
            while block := weights.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def check_base(recipe: sftrun.Recipe, adapter: Path) -> None:
    """Raises UserError when an adapter was trained on other base weights than those it meets now."""
    trained_on = json.loads((adapter / "base.json").read_text("utf-8"))
    if weights_hash(base_location(recipe)) != trained_on["weights"]:
        message = f"the adapter {adapter} does not match its base {recipe.model.name}: those weights have changed"
        raise sftrun.UserError(message, hint=f"train it again, or put back the base with hash {trained_on['weights']}")


def stop_ids(run: sftrun.RunDir, model: Any) -> list[int]:
    """Ids that end an answer: the template's end-of-turn, and what the model itself ends on."""
    own = model.generation_config.eos_token_id
    found = {own} if isinstance(own, int) else set(own or ())
    ends = run.read_json("prepared/proof.json").get("end_of_turn", {})
    return sorted(found | {ids[0] for ids in ends.values() if len(ids) == 1})


class UnslothModel:
    """A model loaded by unsloth, in its mode for inference."""

    def __init__(self, recipe: sftrun.Recipe, run: Path, which: Literal["base", "tuned"]) -> None:
        self.run = sftrun.RunDir(run)
        self.batch_size = recipe.train.eval_batch_size
        self.tokenizer = sftrun.load_tokenizer(recipe.model)
        loaded = load_base(recipe) if which == "base" else load_tuned(recipe, self.run)
        self.model = FastLanguageModel.for_inference(loaded).eval()
        self.stop = stop_ids(self.run, self.model)
        pad = self.tokenizer.id_of("pad_token")
        self.pad = pad if pad is not None else (self.stop[0] if self.stop else 0)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, batch_size: int) -> list[list[int]]:
        by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        answers: list[list[int]] = [[] for _ in prompts]
        for batch in batches(by_length, batch_size):
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
        return loss_sums(self.model, sftrun.read_samples(file), self.batch_size) if file.is_file() else None


@torch.inference_mode()
def loss_sums(model: Any, samples: Iterable[Any], batch_size: int) -> sftrun.LossSums:
    """Sums over all trained tokens, independent of how they are batched."""
    tokens, loss, correct = 0, 0.0, 0
    for batch in batches(samples, batch_size):
        width = max(len(sample.ids) for sample in batch)
        ids, mask, trained = (
            torch.tensor([row + [0] * (width - len(row)) for row in rows]).to(model.device)
            for rows in ([s.ids for s in batch], [[1] * len(s.ids) for s in batch], [s.trained for s in batch])
        )
        picked, wanted = scored(model, ids, mask, trained.bool())
        tokens += wanted.numel()
        loss += torch.nn.functional.cross_entropy(picked, wanted, reduction="sum").item()
        correct += int((picked.argmax(-1) == wanted).sum())
    return sftrun.LossSums(tokens, loss, correct)


def scored(model: Any, ids: torch.Tensor, mask: torch.Tensor, trained: torch.Tensor) -> tuple[Any, Any]:
    """Logits ([trained tokens, vocabulary]) and ids of the trained tokens; `t - 1` has the logits of token `t`."""
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits[:, :-1][trained[:, 1:]].float(), ids[:, 1:][trained[:, 1:]]


def batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` items, the last one perhaps shorter."""
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
