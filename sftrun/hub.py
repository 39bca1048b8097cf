"""The Hugging Face Hub: what can be reached, and what to say when it cannot."""

from collections.abc import Sequence
from pathlib import Path

from sftrun.errors import Problem, RecipePath, UserError

TIMEOUT = 4.0  # seconds; a library's own retries take minutes when nothing answers


def fetch(name: str, revision: str | None, patterns: Sequence[str], path: RecipePath) -> Path:
    """A local folder with a model's files, newest from the Hub or else as cached; its name is the commit.

    Raises UserError, soon, for a model that cannot be had.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        commit = HfApi().model_info(name, revision=revision, timeout=TIMEOUT).sha
        return Path(snapshot_download(name, revision=commit, allow_patterns=list(patterns)))
    except Exception as error:
        problem = explained("model", name, error, path)
        if not is_unreachable(error):
            raise UserError(problem) from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns), local_files_only=True))
    except (LocalEntryNotFoundError, OSError) as error:
        raise UserError(problem) from error


def check_dataset(name: str, revision: str | None, path: RecipePath) -> str | None:
    """The commit of a dataset on the Hub; None for a folder, or offline.

    Raises UserError, soon, for a dataset that cannot be had; a cached one needs HF_HUB_OFFLINE=1.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE or Path(name).exists():
        return None
    try:
        return HfApi().dataset_info(name, revision=revision, timeout=TIMEOUT).sha
    except Exception as error:
        raise UserError(explained("dataset", name, error, path)) from error


def is_unreachable(error: Exception) -> bool:
    """Whether the Hub gave no answer, or one that has nothing to do with the name."""
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    return not isinstance(error, (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError, HFValidationError))


def explained(what: str, name: str, error: Exception, path: RecipePath) -> Problem:
    """What went wrong with a name of the Hub, and what to do."""
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    told = {
        GatedRepoError: ("is gated", "accept its licence on the Hub, then: hf auth login"),
        RevisionNotFoundError: ("has no such revision", "name a branch, a tag or a commit"),
        RepositoryNotFoundError: ("is not on the Hub", "check the id; a folder is written ./…; private: hf auth login"),
        HFValidationError: ("is no id of the Hub", "write owner/name, or ./… for a folder"),
    }
    hint = (
        "check the network; if it is in the cache already, set HF_HUB_OFFLINE=1; else download it and name its folder"
    )
    if Path(name).is_dir():
        hint = f"for the folder of this name write ./{name}; for the Hub, {hint}"
    unreachable = (f"cannot be fetched from the Hub ({type(error).__name__})", hint)
    reason, hint = next((said for kind, said in told.items() if isinstance(error, kind)), unreachable)
    return Problem(f"the {what} {name} {reason}", path=path, hint=hint)
