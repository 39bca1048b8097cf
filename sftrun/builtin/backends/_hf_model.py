"""Loads transformers models, generates with them, and sums their losses."""

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

import sftrun
from sftrun import tiny
from sftrun.builtin.backends import _head, _quant, _vocabulary

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def device() -> torch.device:
    """Where models run: the first GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision(recipe: sftrun.Recipe) -> str:
    """The number format of the computation, with `auto` resolved for this machine."""
    wanted = recipe.train.precision
    gpu = torch.cuda.is_available()
    if wanted == "auto":
        return "bf16" if gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if wanted == "fp16" and not gpu:
        problem = sftrun.Problem(
            "fp16 needs a GPU, and there is none", path=("train", "precision"), hint="use fp32 or auto"
        )
        raise sftrun.UserError(problem)
    return wanted


def base_location(recipe: sftrun.Recipe) -> str:
    """The folder or Hub id to load the base model from; the embedded model is made here, once a seed."""
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


def load_base(
    recipe: sftrun.Recipe, quantisation: dict[str, Any] | None = None, where: torch.device | None = None
) -> Any:
    """The base model, with an embedding for each token: fp32 weights where they are trained in full, else in the
    precision of the computation, or quantised as `BnbOptions` says.

    Raises UserError where it cannot be loaded.
    """
    dtype = torch.float32 if recipe.tuning.mode == "full" else DTYPES[precision(recipe)]
    location = base_location(recipe)
    if (Path(location) / "adapter_config.json").is_file():
        problem = sftrun.Problem(
            f"{location} holds an adapter, not a whole model",
            path=("model", "name"),
            hint="train it with the exporter merged, and name its export/merged",
        )
        raise sftrun.UserError(problem)
    where = where or device()
    held = _quant.settings(quantisation, precision(recipe), where) if quantisation else {}
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            location, revision=commit(recipe), dtype=dtype, **held
        )
    except (OSError, ValueError) as error:
        message = f"the model {location} cannot be loaded: {str(error).splitlines()[0]}"
        raise sftrun.UserError(sftrun.Problem(message, path=("model", "name"))) from error
    if quantisation:
        _quant.keep_as_they_are(model)
    else:
        model = model.to(where)
    _vocabulary.fit(model, sftrun.load_tokenizer(recipe.model))
    return model


def commit(recipe: sftrun.Recipe) -> str:
    """The commit on the Hub whose tokenizer prepared the data; for a folder it means nothing."""
    return sftrun.load_tokenizer(recipe.model).folder.name


def load_tuned(recipe: sftrun.Recipe, run: sftrun.RunDir) -> Any:
    """The tuned model: whole weights, or the adapter on the base that it was trained on."""
    if not run.model.is_dir():
        raise sftrun.UserError(f"{run.path} has no trained model", hint="run its recipe first")
    if not (run.model / "adapter_config.json").is_file():
        return transformers.AutoModelForCausalLM.from_pretrained(run.model, dtype=torch.float32).to(device())
    from peft import PeftModel

    base = load_base(recipe, trained_on(run).get("quantisation"))
    check_base(recipe, run.model)
    return PeftModel.from_pretrained(base, run.model)


def trained_on(run: sftrun.RunDir) -> dict[str, Any]:
    """The base of a run's adapter: its name, the hash of its weights, and how they were held."""
    return dict(run.read_json("model/base.json"))


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
    now = weights_hash(base_location(recipe))
    if now != trained_on["weights"]:
        message = f"the adapter {adapter} does not match its base {recipe.model.name}: those weights have changed"
        raise sftrun.UserError(message, hint=f"train it again, or put back the base with hash {trained_on['weights']}")


def stop_ids(run: sftrun.RunDir, model: Any) -> list[int]:
    """Ids that end an answer: the template's end-of-turn, and what the model itself ends on."""
    own = model.generation_config.eos_token_id
    found = {own} if isinstance(own, int) else set(own or ())
    ends = run.read_json("prepared/proof.json").get("end_of_turn", {})
    return sorted(found | {ids[0] for ids in ends.values() if len(ids) == 1})


class HfModel:
    """A loaded transformers model."""

    def __init__(
        self,
        recipe: sftrun.Recipe,
        run: Path,
        which: Literal["base", "tuned"],
        quantisation: dict[str, Any] | None = None,
    ) -> None:
        self.run = sftrun.RunDir(run)
        self.batch_size = recipe.train.eval_batch_size
        self.tokenizer = sftrun.load_tokenizer(recipe.model)
        self.model = (load_base(recipe, quantisation) if which == "base" else load_tuned(recipe, self.run)).eval()
        _head.add(self.model)
        self.stop = stop_ids(self.run, self.model)
        pad = self.tokenizer.id_of("pad_token")
        self.pad = pad if pad is not None else (self.stop[0] if self.stop else 0)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, batch_size: int) -> list[list[int]]:
        by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        answers: list[list[int]] = [[] for _ in prompts]
        for batch in _batches(by_length, batch_size):
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
    """Sums over all trained tokens of a model that `_head.add` has seen, independent of how they are batched.

    Token `t` is scored by the logits at `t - 1`; there are none of the other positions.
    """
    tokens, loss, correct = 0, 0.0, 0
    for batch in _batches(samples, batch_size):
        width = max(len(sample.ids) for sample in batch)
        ids = torch.tensor([sample.ids + [0] * (width - len(sample.ids)) for sample in batch])
        mask = torch.tensor([[1] * len(s.ids) + [0] * (width - len(s.ids)) for s in batch])
        trained = torch.tensor([s.trained + [0] * (width - len(s.ids)) for s in batch]).bool()
        given = {"input_ids": ids, "attention_mask": mask, "scored": ids.where(trained, sftrun.IGNORED)}
        made = model(**{name: each.to(model.device) for name, each in given.items()}, use_cache=False)
        tokens += int(trained[:, 1:].sum())
        loss += made["loss"].item()
        correct += int(made["correct"])
    return sftrun.LossSums(tokens, loss, correct)


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
