"""The Hugging Face Hub, for plugins that load from it: fetches models, pins commits, explains failures.

- `fetch(name, revision, patterns, path)`: a local folder with files of a model, named after the commit.
- `find_commit(name, revision, path)`: the commit of a model, checked for weights that cannot be loaded safely.
- `is_commit(revision)`: True for a full commit.
- `check_weights(name, files, path)`: the same check for the files of a folder.
- `check_code(name, folder, path)`, `explain_code(name, path)`: Python code that comes with a model.
- `check_dataset(name, revision, path)`: the commit of a dataset, checked before `datasets` starts to load it.
- `explain_failure(kind, name, error, path)`: an error of the Hub as a problem that says what to do.

All but the last raise UserError within seconds. `path` is the key of the name in the recipe: `("model", "name")`.
"""

import contextlib
import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from sftrun.errors import Problem, RecipePath, UserError

__all__ = [
    "check_code",
    "check_dataset",
    "check_weights",
    "explain_code",
    "explain_failure",
    "fetch",
    "find_commit",
    "is_commit",
]

TIMEOUT = 4.0  # seconds; huggingface_hub retries for minutes if nothing answers
COMMIT = re.compile(r"[0-9a-f]{40}")
CODE = ("config.json", "tokenizer_config.json")  # files whose `auto_map` names Python classes
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")  # loading one can run any code


def is_commit(revision: str | None) -> bool:
    """Returns True for a full commit hash, which always means the same files; a branch or a tag may move."""
    return revision is not None and COMMIT.fullmatch(revision) is not None


def find_commit(name: str, revision: str | None, path: RecipePath) -> str | None:
    """Returns the commit of a model on the Hub, of the cached one if the Hub does not answer; None if none is cached.

    Raises UserError if there is no such model, or if `check_weights` does.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        found = HfApi().model_info(name, revision=revision, timeout=TIMEOUT)
    except Exception as error:
        if not _is_unreachable(error):
            raise UserError(explain_failure("model", name, error, path)) from error
    else:
        check_weights(name, [file.rfilename for file in found.siblings or ()], path)
        return found.sha
    with contextlib.suppress(OSError):  # `fetch` says that nothing is cached
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
        check_weights(name, [str(file.relative_to(folder)) for file in folder.rglob("*")], path)
        return folder.name
    return None


def check_weights(name: str, files: Collection[str], path: RecipePath) -> None:
    """Raises UserError if a model has no weights but pickled ones."""
    pickled = sorted(file for file in files if file.endswith(PICKLES) and "/" not in file)
    weights = [file for file in pickled if "model" in file or "consolidated" in file]
    if weights and not any(file.endswith(".safetensors") for file in files):
        message = f"the weights of {name} are pickled ({weights[0]}), and loading them could run any code in them"
        hint = (
            "name a revision or a model with .safetensors; if you trust them, convert them once with transformers: "
            f"AutoModelForCausalLM.from_pretrained({name!r}).save_pretrained('FOLDER'), then the same with "
            "AutoTokenizer, and name FOLDER"
        )
        raise UserError(Problem(message, path=path, hint=hint))


def explain_code(name: str, path: RecipePath) -> Problem:
    """Returns the problem of a model that comes with Python code, which does not run unless the recipe allows it."""
    hint = "use a model that transformers has; or read its code, and set model.trust_remote_code: true"
    if not Path(name).is_absolute():
        hint += " and model.revision: the commit that you have read"
    return Problem(
        f"the model {name} comes with Python code of its own, which sftrun does not run", path=path, hint=hint
    )


def check_code(name: str, folder: Path, path: RecipePath) -> None:
    """Raises UserError if a model takes code from another repository, whose commit no recipe names."""
    for file in CODE:
        found = json.loads((folder / file).read_text("utf-8")) if (folder / file).is_file() else {}
        for value in found.get("auto_map", {}).values():
            for each in value if isinstance(value, list) else [value]:
                if "--" in (each or ""):
                    message = f"{file} of {name} takes code from another repository: {each}"
                    hint = "copy that code into the folder of the model, and name it in auto_map without repository"
                    raise UserError(Problem(message, path=path, hint=hint))


def fetch(name: str, revision: str | None, patterns: Sequence[str], path: RecipePath) -> Path:
    """Returns a local folder with a model's files, named after the commit: the newest of the Hub, or else cached ones.

    If the revision is a commit and its files are cached, the Hub is not asked. Raises UserError, without long retries,
    if the model is not available.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        if is_commit(revision) and (folder := _find_cached(name, str(revision), patterns)):
            return folder
        commit = HfApi().model_info(name, revision=revision, timeout=TIMEOUT).sha
        folder = Path(snapshot_download(name, revision=commit, allow_patterns=list(patterns)))
        _remember_missing(name, folder, patterns)
        return folder
    except Exception as error:
        problem = explain_failure("model", name, error, path)
        if not _is_unreachable(error):
            raise UserError(problem) from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns), local_files_only=True))
    except (LocalEntryNotFoundError, OSError) as error:
        raise UserError(problem) from error


def _find_cached(name: str, commit: str, patterns: Sequence[str]) -> Path | None:
    """Returns the cached folder of a commit if it is known of each file that it is there, or that there is none."""
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    plain = [pattern for pattern in patterns if "*" not in pattern]
    if any(try_to_load_from_cache(name, file, revision=commit) is None for file in plain):
        return None
    return Path(snapshot_download(name, revision=commit, local_files_only=True))


def _remember_missing(name: str, folder: Path, patterns: Sequence[str]) -> None:
    """Asks once for each file that a model does not have: huggingface_hub then knows that there is none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    for file in patterns:
        if "*" not in file and not (folder / file).exists():
            with contextlib.suppress(EntryNotFoundError):
                hf_hub_download(name, file, revision=folder.name)


def check_dataset(name: str, revision: str | None, path: RecipePath) -> str | None:
    """Returns the commit of a dataset on the Hub; None for a folder, or offline.

    Raises UserError, without long retries, if the dataset is not available. A cached one needs HF_HUB_OFFLINE=1.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE or Path(name).exists():
        return None
    try:
        return HfApi().dataset_info(name, revision=revision, timeout=TIMEOUT).sha
    except Exception as error:
        raise UserError(explain_failure("dataset", name, error, path)) from error


def _is_unreachable(error: Exception) -> bool:
    """Returns True if the Hub gave no answer, or one that is not about the name."""
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    return not isinstance(error, (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError, HFValidationError))


def explain_failure(kind: str, name: str, error: Exception, path: RecipePath) -> Problem:
    """Returns the problem of a name on the Hub, with the cause and what to do."""
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    known = {
        GatedRepoError: ("is gated", "accept its licence on the Hub, then: hf auth login"),
        RevisionNotFoundError: ("has no such revision", "name a branch, a tag or a commit"),
        RepositoryNotFoundError: (
            "is not on the Hub",
            "check the id; write ./… for a folder; for a private one: hf auth login",
        ),
        HFValidationError: ("is not a valid id of the Hub", "write owner/name, or ./… for a folder"),
    }
    hint = "check the network; if it is cached, set HF_HUB_OFFLINE=1; otherwise download it and use its folder as name"
    if Path(name).is_dir():
        hint = f"for the folder of this name write ./{name}; for the Hub, {hint}"
    unreachable = (f"cannot be fetched from the Hub ({type(error).__name__})", hint)
    reason, hint = next((advice for error_type, advice in known.items() if isinstance(error, error_type)), unreachable)
    return Problem(f"the {kind} {name} {reason}", path=path, hint=hint)
