"""Loads configs, models and tokenizers with transformers: all that comes from a model folder or the Hub passes here.

Weights are read from safetensors only. Python code that comes with a model runs only with `model.trust_remote_code`.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import transformers
from transformers import dynamic_module_utils

import sftrun
import sftrun.data
from sftrun import hub
from sftrun.options import is_path
from sftrun.recipe.model import ModelOptions

PATH = ("model", "name")  # path in the recipe, for problems
CODE = ("config.json", "tokenizer_config.json")  # files whose `auto_map` names Python classes

dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # a library that leaves the choice open gets an error, not a question


def load_config(source: str | Path, options: ModelOptions, **settings: Any) -> Any:
    """Returns the config of a model."""
    return _load(transformers.AutoConfig, source, options, **settings)


def load_model(source: str | Path, options: ModelOptions, **settings: Any) -> Any:
    """Returns a model with its weights; raises UserError if they are pickled or cannot be loaded."""
    if Path(source).is_dir():
        hub.check_weights(str(source), [file.name for file in Path(source).iterdir()], PATH)
    return _load(transformers.AutoModelForCausalLM, source, options, use_safetensors=True, **settings)


def load_tokenizer(folder: Path, options: ModelOptions) -> Any:
    """Returns the transformers tokenizer of a folder."""
    return _load(transformers.AutoTokenizer, folder, options)


def build_model(config: Any, options: ModelOptions, **settings: Any) -> Any:
    """Returns a model of a config, with new weights."""
    with explained(options.name, options):
        trust = options.trust_remote_code
        return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=trust, **settings)


def _load(kind: Any, source: str | Path, options: ModelOptions, **settings: Any) -> Any:
    with explained(source, options):
        return kind.from_pretrained(source, trust_remote_code=options.trust_remote_code, **settings)


@contextlib.contextmanager
def explained(source: str | Path, options: ModelOptions) -> Iterator[None]:
    """A context in which errors of loading a model are UserErrors, with what to do if it brings its own code."""
    if options.trust_remote_code:
        _check_code(options)
    try:
        yield
    except (OSError, ValueError, ImportError, safetensors.SafetensorError) as error:
        if "trust_remote_code" in str(error):
            message = f"the model {source} comes with Python code of its own, which sftrun does not run"
            hint = "use a model that transformers has; or read its code, and set model.trust_remote_code: true"
            if not is_path(options.name):
                hint += " and model.revision: the commit that you have read"
            raise sftrun.UserError(sftrun.Problem(message, path=PATH, hint=hint)) from error
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise sftrun.UserError(sftrun.Problem(f"the model {source} cannot be loaded: {reason}", path=PATH)) from error


def _check_code(options: ModelOptions) -> None:
    """Raises UserError if a model takes code from another repository, whose commit no recipe names."""
    folder = sftrun.data.load_tokenizer(options).folder
    for file in CODE:
        found = json.loads((folder / file).read_text("utf-8")) if (folder / file).is_file() else {}
        for value in found.get("auto_map", {}).values():
            for name in value if isinstance(value, list) else [value]:
                if "--" in (name or ""):
                    message = f"{file} of {options.name} takes code from another repository: {name}"
                    hint = "copy that code into the folder of the model, and name it in auto_map without repository"
                    raise sftrun.UserError(sftrun.Problem(message, path=("model", "trust_remote_code"), hint=hint))
