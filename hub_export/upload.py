"""Push a bundle to the Hub: verify it, then send it in one commit."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils.sha import git_hash

from ..common.hub_errors import check_can_push, in_one_sentence, may_not_write
from ..common.replace_folder import recover
from ..common.run_files import ADAPTER_CONFIG, read_json
from ..common.run_folder import RunFolder
from ..common.writing import temporary_folder, writing
from .card import CARD, name_repository
from .manifest import file_digest, json_digest, read_manifest, write_json, write_manifest
from .verification import verify

WAITS = (1, 4, 16)  # seconds between attempts
BUSY = (None, 429, 500, 502, 503, 504)  # status codes after which another attempt may succeed; None for no answer
HUB_FILE = ".gitattributes"  # The Hub puts it into each repository, and it is never deleted.


@dataclass(frozen=True)
class PushOptions:
    """How a bundle is sent. `push` explains each field."""

    private: bool = False
    revision: str | None = None
    create_pr: bool = False
    message: str | None = None
    delete_others: bool = False


@dataclass(frozen=True)
class Pushed:
    """What `push` sent.

    Args:
        url: Page of the commit, or of the pull request.
        commit: Hash of the commit.
        size: Bytes of the bundle's files.
    """

    url: str
    commit: str
    size: int


def push(
    bundle: str | Path,
    repo_id: str,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    delete_others: bool = False,
    use_cache: bool = False,
    trust_code: bool = False,
    api: HfApi | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Pushed:
    """Verify a bundle, then send it in one commit, which arrives whole or not at all.

    Args:
        bundle: The folder that `export` wrote. Its card may have been edited since.
        repo_id: The repository, "owner/name". It is created if it does not exist.
        private: Create a private repository.
        revision: Branch to commit to, created if it does not exist. Default: "main".
        create_pr: Open a pull request instead.
        message: Title of the commit.
        delete_others: Delete the files of the repository that are not in the bundle.
        use_cache: See `verify`.
        trust_code: See `verify`.
        api: Client of the Hub. Default: a client with the token and the address of the environment.
        say: Function that gets each line of the verification, and a line for each new attempt.

    Returns:
        Where the bundle is now.

    Raises:
        ValueError: The bundle does not verify, or readers cannot download its base model.
        OSError: `repo_id` is not a valid id; there is no token; HF_HUB_OFFLINE is set; or the Hub refused the bundle or
            could not be reached. The repository is as it was, or complete except for a tag; the message says which.
    """
    bundle, api = Path(bundle), api or HfApi()
    options = PushOptions(private, revision, create_pr, message, delete_others)
    recover(bundle)
    manifest = read_manifest(bundle)
    check_can_push(repo_id, api.token)
    try:
        account = api.whoami()  # Verifying takes minutes, so find out first whether the Hub takes the token.
    except Exception as error:
        raise as_one_sentence(error, repo_id) from error
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise OSError(may_not_write(repo_id))
    if manifest["kind"] == "adapter" and not private:
        check_public(RunFolder(bundle).model_config, api.endpoint)
    report = verify(bundle, use_cache=use_cache, trust_code=trust_code, say=say)
    if not report.ok:
        raise ValueError(f"nothing was pushed, because {bundle} does not verify: {report.failures[0]}.")
    try:
        return deliver(api, bundle, repo_id, options, say)
    except Exception as error:
        raise as_one_sentence(error, repo_id) from error


def as_one_sentence(error: Exception, repo_id: str) -> Exception:
    """Return an error of the Hub's client as an OSError of one sentence, and our own errors unchanged."""
    # The client's own errors are ValueErrors and OSErrors too.
    ours = isinstance(error, (ValueError, OSError)) and not isinstance(error, (HfHubHTTPError, HFValidationError))
    is_sentence = ours and not isinstance(error, (LocalTokenNotFoundError, ConnectionError))
    return error if is_sentence else OSError(in_one_sentence(error, repo_id))


def check_public(config: dict[str, Any], endpoint: str) -> None:
    """Check that a reader without a token can download the base model that a bundle's config names.

    Raises:
        ValueError: The base model is private, gated or gone.
        OSError: The Hub does not answer.
    """
    base_model = config["backbone"]
    try:
        info = HfApi(endpoint, token=False).model_info(base_model, revision=config["backbone_revision"])
    except RepositoryNotFoundError as error:
        raise ValueError(_not_public(base_model, "private, or gone")) from error
    except Exception as error:
        raise OSError(in_one_sentence(error, base_model)) from error
    if info.gated:
        raise ValueError(_not_public(base_model, "gated"))


def _not_public(base_model: str, problem: str) -> str:
    return (
        f"the base model {base_model} is {problem}, so readers would need access to it. Push with --private for "
        "readers who have access, or export with --kind standalone if its licence allows."
    )


def deliver(api: HfApi, bundle: Path, repo_id: str, options: PushOptions, say: Callable[[str], None]) -> Pushed:
    """Send a bundle without verifying it, and tag the commit. Create the repository and the branch if needed.

    Raises:
        ValueError: A private repository is asked for, and a public one exists already.
        OSError: See `send` and `set_tag`.
    """
    api.create_repo(repo_id, private=options.private or None, exist_ok=True)
    if options.private and not api.repo_info(repo_id).private:
        raise ValueError(
            f"{repo_id} exists already, and is public. Make it private on its page, or choose a different name."
        )
    if options.revision is not None and not options.create_pr:
        api.create_branch(repo_id, branch=options.revision, exist_ok=True)
    # The card names the tag. PEFT needs it as well: it loads an adapter's base model from main unless the adapter names
    # a revision.
    tag = None if options.create_pr else f"t5fusion-{json_digest(read_manifest(bundle))[:12]}"
    with temporary_folder("t5fusion-push-") as folder:
        with writing(folder):
            files = prepare_files(bundle, folder, repo_id, tag)
        pushed = send(api, repo_id, files, options, say)
    if tag is not None:
        set_tag(api, repo_id, tag, pushed.commit, say)
    return pushed


def set_tag(api: HfApi, repo_id: str, tag: str, commit: str, say: Callable[[str], None]) -> None:
    """Tag the commit. Try again if the Hub is busy or does not answer.

    Raises:
        OSError: The tag could not be set. The message says that the commit has arrived nevertheless.
    """
    for wait in (*WAITS, None):
        try:
            api.create_tag(repo_id, tag=tag, revision=commit, exist_ok=True)
            return
        except Exception as error:
            if wait is None or _status(error) not in BUSY:
                raise OSError(
                    f"commit {commit} is in {repo_id}, but its tag {tag} is not ({in_one_sentence(error, repo_id)}) "
                    "The card names the tag, and AutoPeftModel needs it. Push again: only the tag will be made."
                ) from error
            _say_and_wait(wait, say)


def _say_and_wait(seconds: float, say: Callable[[str], None]) -> None:
    say(f"the Hub was busy or did not answer; the next attempt is in {seconds} s")
    time.sleep(seconds)


def _status(error: Exception) -> int | None:
    """Return the status code of the Hub's answer, or None if there was no answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


def prepare_files(bundle: Path, folder: Path, repo_id: str, tag: str | None) -> list[Path]:
    """Copy a bundle to `folder`. The card and the adapter of the copy name the repository.

    Returns:
        The files to send.
    """
    manifest = read_manifest(bundle)
    for name in manifest["files"]:
        shutil.copy(bundle / name, folder / name)
    adapter_config = folder / ADAPTER_CONFIG
    if adapter_config.exists():
        # PEFT then loads the repository itself as the base model, and its config.json names the adapter's base model.
        fields = read_json(adapter_config)
        write_json(adapter_config, fields | {"base_model_name_or_path": repo_id, "revision": tag})
    card = folder / CARD
    text = name_repository(card.read_text(encoding="utf-8"), repo_id, *([tag] if tag else []))
    card.write_text(text, encoding="utf-8")
    write_manifest(folder, manifest["kind"])
    return sorted(folder.iterdir())


def send(api: HfApi, repo_id: str, files: list[Path], options: PushOptions, say: Callable[[str], None]) -> Pushed:
    """Send all files in one commit. Try again if the Hub is busy or does not answer.

    Raises:
        OSError: Somebody else changed the repository during this push. It is left as they made it.
        HfHubHTTPError: The Hub refused the commit, or the last attempt failed.
    """
    before = api.model_info(repo_id, revision=options.revision)
    kept = {file.name for file in files} | {HUB_FILE}
    others = [entry.rfilename for entry in before.siblings or () if entry.rfilename not in kept]
    size = sum(file.stat().st_size for file in files)
    for wait in (*WAITS, None):
        added = [CommitOperationAdd(file.name, str(file)) for file in files]
        deleted = [CommitOperationDelete(name) for name in others if options.delete_others]
        try:
            commit = api.create_commit(
                repo_id,
                [*added, *deleted],
                commit_message=options.message or "Upload a t5fusion bundle",
                revision=options.revision,
                create_pr=options.create_pr,
                parent_commit=before.sha,
            )
            return Pushed(commit.pr_url or commit.commit_url, commit.oid, size)
        except Exception as error:
            arrived = None if options.create_pr else find_arrived(api, repo_id, files, options.revision, before.sha)
            if arrived:
                return Pushed(f"{api.endpoint}/{repo_id}/commit/{arrived}", arrived, size)
            status = _status(error)
            if status in (409, 412):
                raise OSError(
                    f"{repo_id} was changed by someone else during this push, and is left as they made it. Look at it, "
                    "and push again."
                ) from error
            may_be_open = options.create_pr and status is None  # Without an answer, the pull request may exist already.
            if wait is None or status not in BUSY or may_be_open:
                raise
            _say_and_wait(wait, say)
    raise AssertionError("unreachable: the last attempt returns or raises")


def find_arrived(api: HfApi, repo_id: str, files: list[Path], revision: str | None, parent: str | None) -> str | None:
    """Return the newest commit if it holds these files and is not `parent`; otherwise None.

    If there is one, the Hub has accepted the commit, and only its answer was lost.
    """
    try:
        head = api.model_info(repo_id, revision=revision, files_metadata=True)
    except Exception:  # The Hub is still unreachable, and the error of the attempt itself says why.
        return None
    digests = {entry.rfilename: entry.lfs.sha256 if entry.lfs else entry.blob_id for entry in head.siblings or ()}
    same = all(digests.get(file.name) in (file_digest(file), git_hash(file.read_bytes())) for file in files)
    return head.sha if same and head.sha != parent else None
