"""Send a bundle that verified to the Hub, in one commit."""

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import git_hash

from ..common.hub_errors import in_one_sentence
from ..common.replace_folder import recover
from ..common.saved_files import read_json
from .bundle import CARD
from .card import name_repository
from .manifest import file_digest, json_digest, read_manifest, write_json, write_manifest
from .verification import verify

WAITS = (1, 4, 16)  # seconds between attempts
BUSY = (None, 429, 500, 502, 503, 504)  # answers, or none, that another attempt may better
KEPT = ".gitattributes"  # the Hub's own


@dataclass(frozen=True)
class Pushed:
    url: str  # of the commit, or of the pull request
    commit: str
    size: int  # bytes of the bundle's files


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
    """Verifies the bundle, then sends it in one commit, which is there whole or not at all.

    Args:
        bundle: what `export` wrote; its card may have been edited since.
        repo_id: "owner/name", which is created where it is missing.
        private: create a private repository.
        revision: branch to commit to, created where it is missing; "main" by default.
        create_pr: open a pull request instead.
        message: of the commit.
        delete_others: remove the files that the repository has and the bundle has not.
        use_cache, trust_code: see `verify`.
        api: the Hub's client; by default that of the environment.
        say: is told each line of the report on the bundle, and each new attempt.

    Raises:
        ValueError: the bundle does not verify, or readers could not have its backbone, or the Hub allows no such name.
        OSError: the Hub did not take it; the repository is as it was, or complete but for a tag, and the error says so.
    """
    bundle, api = Path(bundle), api or HfApi()
    recover(bundle)
    manifest = read_manifest(bundle)
    try:
        validate_repo_id(repo_id)
        api.whoami()
    except Exception as error:
        raise _told(error, repo_id) from error
    if manifest["kind"] == "adapter" and not private:
        check_readers_can_have(read_json(bundle / "config.json"), api.endpoint)
    report = verify(bundle, use_cache=use_cache, trust_code=trust_code, say=say)
    if not report.ok:
        raise ValueError(f"nothing was pushed, since {bundle} does not verify: {report.failures[0]}.")
    try:
        return deliver(api, bundle, repo_id, private, revision, create_pr, message, delete_others, say)
    except Exception as error:
        raise _told(error, repo_id) from error


def _told(error: Exception, repo_id: str) -> Exception:
    """The error in one sentence; one of our own as it is."""
    ours = isinstance(error, (ValueError, OSError)) and not isinstance(error, (HfHubHTTPError, HFValidationError))
    known = ours and not isinstance(error, (LocalTokenNotFoundError, ConnectionError))
    return error if known else OSError(in_one_sentence(error, repo_id))


def check_readers_can_have(config: dict, endpoint: str) -> None:
    """ValueError if the backbone of a public bundle is private, gated or gone for a reader without a token."""
    backbone = config["backbone"]
    try:
        info = HfApi(endpoint, token=False).model_info(backbone, revision=config["backbone_revision"])
    except RepositoryNotFoundError as error:
        raise ValueError(_not_for_all(backbone, "private, or gone")) from error
    except Exception as error:
        raise OSError(in_one_sentence(error, backbone)) from error
    if info.gated:
        raise ValueError(_not_for_all(backbone, "gated"))


def _not_for_all(backbone: str, how: str) -> str:
    return (
        f"the backbone {backbone} is {how}, so readers would need access to it. Use --private for those who have it, "
        "or --kind standalone at the export if its licence allows."
    )


def deliver(api, bundle, repo_id, private, revision, create_pr, message, delete_others, say) -> Pushed:
    """Makes the repository, and the branch, where they are missing, sends the bundle, and tags the commit."""
    api.create_repo(repo_id, private=private or None, exist_ok=True)
    if private and not api.repo_info(repo_id).private:
        raise ValueError(
            f"{repo_id} is there already, and public. Make it private on its page, or choose another name."
        )
    if revision is not None and not create_pr:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    # for the card to name, and for PEFT, which takes an adapter's base from main unless the adapter names a revision
    tag = None if create_pr else f"t5fusion-{json_digest(read_manifest(bundle))[:12]}"
    with tempfile.TemporaryDirectory(prefix="t5fusion-push-") as folder:
        files = stage(bundle, Path(folder), repo_id, tag)
        pushed = send(api, repo_id, files, revision, create_pr, message, delete_others, say)
    if tag is not None:
        set_tag(api, repo_id, tag, pushed.commit, say)
    return pushed


def set_tag(api, repo_id: str, tag: str, commit: str, say) -> None:
    """Tags the commit, tried again like it; OSError, saying what is there and what is not, if it cannot be done."""
    for wait in (*WAITS, None):
        try:
            return api.create_tag(repo_id, tag=tag, revision=commit, exist_ok=True)
        except Exception as error:
            if wait is None or _status(error) not in BUSY:
                raise OSError(
                    f"commit {commit} is in {repo_id}, but its tag {tag} is not ({in_one_sentence(error, repo_id)}) "
                    "The card names it, and AutoPeftModel needs it. Push again: only the tag will be made."
                ) from error
            say(f"the Hub was busy or did not answer; again in {wait} s")
            time.sleep(wait)


def _status(error: Exception) -> int | None:
    """The Hub's answer; None for no answer at all."""
    return getattr(getattr(error, "response", None), "status_code", None)


def stage(bundle: Path, folder: Path, repo_id: str, tag: str | None) -> list[Path]:
    """Copies the bundle to `folder`, with the repository, at `tag`, as the base of its adapter, and in its card."""
    manifest = read_manifest(bundle)
    for name in manifest["files"]:
        shutil.copy(bundle / name, folder / name)
    adapter_config = folder / "adapter_config.json"
    if adapter_config.exists():
        # a Hub's repository is always loaded over this name; its own config.json then says what lies beneath
        fields = read_json(adapter_config)
        write_json(adapter_config, fields | {"base_model_name_or_path": repo_id, "revision": tag})
    card = folder / CARD
    named = name_repository(card.read_text(encoding="utf-8"), repo_id, *([tag] if tag else []))
    card.write_text(named, encoding="utf-8")
    write_manifest(folder, manifest["kind"])
    return sorted(folder.iterdir())


def send(api, repo_id, files, revision, create_pr, message, delete_others, say) -> Pushed:
    """One commit with all files, tried again where the Hub was busy or did not answer."""
    info = api.repo_info(repo_id, revision=revision)
    names = {file.name for file in files} | {KEPT}
    others = [entry.rfilename for entry in info.siblings or () if entry.rfilename not in names]
    size = sum(file.stat().st_size for file in files)
    for wait in (*WAITS, None):
        added = [CommitOperationAdd(file.name, str(file)) for file in files]
        deleted = [CommitOperationDelete(name) for name in others if delete_others]
        try:
            commit = api.create_commit(
                repo_id, [*added, *deleted], commit_message=message or "Upload a t5fusion bundle", revision=revision,
                create_pr=create_pr, parent_commit=info.sha,
            )  # fmt: skip
            return Pushed(commit.pr_url or commit.commit_url, commit.oid, size)
        except Exception as error:
            if not create_pr and (arrived := find_arrived(api, repo_id, files, revision, info.sha)):
                return Pushed(f"{api.endpoint}/{repo_id}/commit/{arrived}", arrived, size)
            status = _status(error)
            if status in (409, 412):
                raise OSError(
                    f"{repo_id} was changed by someone else while this push was under way, and was left as they made "
                    "it. Look at it, and push again."
                ) from error
            lost = status is None  # no answer: a pull request may be open already
            if wait is None or status not in BUSY or (lost and create_pr):
                raise
            say(f"the Hub was busy or did not answer; again in {wait} s")
            time.sleep(wait)
    raise AssertionError("unreachable: the last attempt returns or raises")


def find_arrived(api, repo_id, files: list[Path], revision: str | None, parent: str) -> str | None:
    """The commit at the head, if it is a new one that holds just these files: then only the answer was lost."""
    try:
        head = api.repo_info(repo_id, revision=revision, files_metadata=True)
    except Exception:  # the Hub is still away; the attempt's own error tells of it
        return None
    there = {entry.rfilename: entry.lfs.sha256 if entry.lfs else entry.blob_id for entry in head.siblings or ()}
    same = all(there.get(file.name) in (file_digest(file), git_hash(file.read_bytes())) for file in files)
    return head.sha if same and head.sha != parent else None
