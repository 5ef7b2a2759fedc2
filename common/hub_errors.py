"""The errors of the Hub and its client, each as one sentence that says what to do."""

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .errors import first_line


def in_one_sentence(error: BaseException, repo_id: str) -> str:
    """Return a sentence for an error about the repository `repo_id`."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, HFValidationError):
        return (
            f"{repo_id!r} is no name that the Hub allows; expected 'name' or 'owner/name', at most 96 letters, digits, "
            "'-', '_' and '.'."
        )
    if isinstance(error, GatedRepoError):
        return f"{repo_id} is gated: ask for access on its page, then log in with `hf auth login`."
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return (
            f"the Hub refused access to {repo_id}: the repository does not exist, or the token is missing, invalid or "
            "without access. Log in with `hf auth login`, or set HF_TOKEN."
        )
    if status == 403:
        return f"this token may not write to {repo_id}. Use a token with write access, or another owner."
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no repository {repo_id} on the Hub, or it is private and this token may not see it."
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no such revision. Name a branch, a tag or a commit of it."
    if isinstance(error, OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set, so {repo_id} cannot be reached. Unset it."
    if isinstance(error, HfHubHTTPError) and status is not None:
        said = (getattr(error, "server_message", None) or first_line(error)).rstrip(".")
        again = " Try again later." if status >= 500 or status == 429 else ""
        return f"the Hub answered {status} for {repo_id}: {said}.{again}"
    return f"the Hub could not be reached for {repo_id} ({first_line(error)}). Check the network, and try again."
