"""Turn errors of the Hub and its client into sentences that say what to do."""

import errno

from huggingface_hub import get_token
from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from ..naming_t5fusion import first_line

LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN."
NOT_WRITTEN = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


def check_can_push(repo_id: str, token: str | bool | None = None) -> None:
    """Check, without asking the Hub, that a push to `repo_id` is possible.

    Args:
        repo_id: The repository.
        token: The token of the client, as `HfApi` takes it: None or True for the token of the environment, False for
            none.

    Raises:
        OSError: `repo_id` is not a valid id, HF_HUB_OFFLINE is set, or there is no token.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise OSError(in_one_sentence(error, repo_id)) from error
    if HF_HUB_OFFLINE:
        raise OSError(_offline(repo_id))
    if token is False or (token in (None, True) and get_token() is None):
        raise OSError(_not_logged_in(repo_id))


def _offline(repo_id: str) -> str:
    return f"HF_HUB_OFFLINE is set, so {repo_id} cannot be reached. Unset it."


def _not_logged_in(repo_id: str) -> str:
    return f"you are not logged in to the Hub, so nothing can be sent to {repo_id}. {LOG_IN}"


def may_not_write(repo_id: str) -> str:
    """Say that the token does not allow to write to a repository."""
    return f"this token may not write to {repo_id}. Use a token with write access, or a different owner."


def in_one_sentence(error: BaseException, repo_id: str, revision: str | None = None) -> str:
    """Describe an error that the Hub or its client raised for the repository `repo_id`, and say what to do.

    Args:
        error: The error.
        repo_id: The repository.
        revision: The branch, tag or commit that was asked for, if it is known.
    """
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, HFValidationError):
        return (
            f"the Hub does not allow the name {repo_id!r}: expected 'name' or 'owner/name', with at most 96 letters, "
            "digits, '-', '_' and '.'."
        )
    if isinstance(error, GatedRepoError):
        return f"{repo_id} is gated: ask for access on its page, then log in with `hf auth login`."
    if isinstance(error, LocalTokenNotFoundError):
        return _not_logged_in(repo_id)
    if status == 401:
        problem = "you are not logged in" if get_token() is None else "this token may not see it, or is not valid"
        return f"the Hub refused access to {repo_id}: it does not exist, or {problem}. {LOG_IN}"
    if status == 403:
        return may_not_write(repo_id)
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"there is no repository {repo_id} on the Hub, or it is private and this token may not see it. Check the "
            f"name. {LOG_IN}"
        )
    if isinstance(error, RevisionNotFoundError):
        named = f"no revision {revision}" if revision else "no such revision"
        return f"{repo_id} has {named}. Name one of its branches, tags or commits."
    if isinstance(error, OfflineModeIsEnabled) or (HF_HUB_OFFLINE and isinstance(error, LocalEntryNotFoundError)):
        return _offline(repo_id)
    if isinstance(error, HfHubHTTPError) and status is not None:
        message = (getattr(error, "server_message", None) or first_line(error)).rstrip(".")
        advice = " Try again later." if status >= 500 or status == 429 else ""
        return f"the Hub answered {status} for {repo_id}: {message}.{advice}"
    if isinstance(error, OSError) and error.errno in NOT_WRITTEN:
        return (
            f"{repo_id} cannot be saved in the Hub's cache, {HF_HUB_CACHE} ({error.strerror}). Free some space, or set "
            "HF_HOME to a folder that can be written to."
        )
    return f"the Hub could not be reached for {repo_id} ({first_line(error)}). Check the network, and try again."
