"""Loads configs, models and tokenizers with transformers: all that comes from a model folder or the Hub passes here.

Weights are read from safetensors only. Python code that comes with a model runs only with `model.trust_remote_code`.
`options` is the key `model` of a recipe.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import transformers
from transformers import dynamic_module_utils

import sftrun
import sftrun.data
from sftrun import hub

PATH = ("model", "name")  # path in the recipe, for problems

dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # a library that leaves the choice open gets an error, not a question


def load_config(source: str | Path, options: Any, **settings: Any) -> Any:
    """Returns the config of a model."""
    return _load(transformers.AutoConfig, source, options, **settings)


def load_model(source: str | Path, options: Any, **settings: Any) -> Any:
    """Returns a model with its weights; raises UserError if they are pickled or cannot be loaded."""
    if Path(source).is_dir():
        hub.check_weights(str(source), [file.name for file in Path(source).iterdir()], PATH)
    return _load(transformers.AutoModelForCausalLM, source, options, use_safetensors=True, **settings)


def load_tokenizer(folder: Path, options: Any) -> Any:
    """Returns the transformers tokenizer of a folder."""
    return _load(transformers.AutoTokenizer, folder, options)


def build_model(config: Any, options: Any, **settings: Any) -> Any:
    """Returns a model of a config, with new weights."""
    with explained(options.name, options):
        trust = options.trust_remote_code
        return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=trust, **settings)


def _load(kind: Any, source: str | Path, options: Any, **settings: Any) -> Any:
    with explained(source, options):
        return kind.from_pretrained(source, trust_remote_code=options.trust_remote_code, **settings)


@contextlib.contextmanager
def explained(source: str | Path, options: Any) -> Iterator[None]:
    """A context in which errors of loading a model are UserErrors, with what to do if it brings its own code."""
    if options.trust_remote_code:
        hub.check_code(options.name, sftrun.data.load_tokenizer(options).folder, ("model", "trust_remote_code"))
    try:
        yield
    except (OSError, ValueError, ImportError, safetensors.SafetensorError) as error:
        if "trust_remote_code" in str(error):
            raise sftrun.UserError(hub.explain_code(str(source), PATH)) from error
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise sftrun.UserError(sftrun.Problem(f"the model {source} cannot be loaded: {reason}", path=PATH)) from error
