"""The Hugging Face Hub, for plugins that load from it: fetches models, pins datasets, explains failures.

- `fetch(name, revision, patterns, path)`: a local folder with files of a model, named after the commit.
- `check_dataset(name, revision, path)`: the commit of a dataset, checked before `datasets` starts to load it.
- `explain_failure(kind, name, error, path)`: an error of the Hub as a problem that says what to do.

The first two raise UserError within seconds. `path` is the key of the name in the recipe: `("model", "name")`.
"""

from collections.abc import Sequence
from pathlib import Path

from sftrun.errors import Problem, RecipePath, UserError

__all__ = ["check_dataset", "explain_failure", "fetch"]

TIMEOUT = 4.0  # seconds; huggingface_hub retries for minutes if nothing answers


def fetch(name: str, revision: str | None, patterns: Sequence[str], path: RecipePath) -> Path:
    """Returns a local folder with a model's files, named after the commit: the newest of the Hub, or else cached ones.

    Raises UserError, without long retries, if the model is not available.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        commit = HfApi().model_info(name, revision=revision, timeout=TIMEOUT).sha
        return Path(snapshot_download(name, revision=commit, allow_patterns=list(patterns)))
    except Exception as error:
        problem = explain_failure("model", name, error, path)
        if not _is_unreachable(error):
            raise UserError(problem) from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns), local_files_only=True))
    except (LocalEntryNotFoundError, OSError) as error:
        raise UserError(problem) from error


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
