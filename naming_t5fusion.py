"""The names of base models: what an adapter records, and the base models inside the package."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any, NamedTuple

# The keywords of `from_pretrained` that say where files are.
HUB_KEYWORDS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
# The "embedded" base models are inside the package t5fusion. Such a name stands for one set of weights, wherever the
# package is installed. The weights behind a name never change, because adapters are saved without them.
FIRST_EMBEDDED, NEWEST_EMBEDDED = "tiny_t5", "tiny_t5_v2"
EMBEDDED = (FIRST_EMBEDDED, NEWEST_EMBEDDED)
# The end of the name of the projection's weight, (tokens * d_model, dim). What stands before it depends on the adapter.
PROJECTION_WEIGHT = "fusion.projection.weight"
# Until `push` fills in the repository, an adapter in a bundle has this name for its base model. No repository can have
# this name, so no class loads a different model by mistake.
NOT_PUSHED = "not on a Hub yet"
UNPUSHED_BASE = (
    f"{NOT_PUSHED}; push it, or type AutoModelForSeq2SeqLM.from_pretrained(FOLDER, trust_remote_code=True), with "
    "transformers 5.5 or later"
)
NO_FOLDER = "there is no folder {}. Check the path, or name a repository on the Hub, OWNER/NAME."
FUSED_NAME_PATTERN = re.compile(r"T5WithFusion\((.+?)(?:@([0-9a-f]{40}))?(?:, (\{.*\}))?\)")


class FusedName(NamedTuple):
    """The name that an adapter records for its fused model: `T5WithFusion(ID@COMMIT, {"lexical_dim": 512})`.

    An adapter does not record the base model's plain id, because other classes would then load a plain T5. The name
    holds the commit and every choice that was made when the fused model was built, so the adapter's folder is enough
    for a reload.
    """

    base_model: str  # Hub id or folder of the checkpoint that the fused model was built from
    commit: str | None = None  # commit, branch or tag of that checkpoint
    # The config fields that differ from the checkpoint's config, and "subfolder" if the checkpoint lies in one.
    choices: Mapping[str, Any] = MappingProxyType({})

    @classmethod
    def parse(cls, name: Any) -> "FusedName":
        """Parse a recorded name. A name of a different form is taken for the checkpoint's own id or folder."""
        parts = FUSED_NAME_PATTERN.fullmatch(name) if isinstance(name, str) else None
        return cls(parts[1], parts[2], json.loads(parts[3] or "{}")) if parts else cls(name)

    def __str__(self) -> str:
        commit = f"@{self.commit}" if self.commit else ""
        choices = f", {json.dumps(dict(self.choices), sort_keys=True)}" if self.choices else ""
        return f"T5WithFusion({self.base_model}{commit}{choices})"

    @property
    def hub_kwargs(self) -> dict[str, Any]:
        """The Hub keywords that the name implies: `revision` and `subfolder`, if it has them."""
        location = {"revision": self.commit, "subfolder": self.choices.get("subfolder")}
        return {key: value for key, value in location.items() if value}

    @property
    def config_fields(self) -> dict[str, Any]:
        """The config fields that the name implies."""
        return {key: value for key, value in self.choices.items() if key != "subfolder"}

    @property
    def keywords(self) -> dict[str, Any]:
        """The keywords with which `T5WithFusion(base_model, **keywords)` builds the same model."""
        return self.config_fields | self.hub_kwargs


def recorded_base(adapter_config: Mapping[str, Any]) -> FusedName:
    """Return the base model that an adapter's config names, with the config's revision if the name has no commit.

    Raises:
        LookupError: The config names no base model.
    """
    name = adapter_config["base_model_name_or_path"]
    if not name:  # PEFT writes null for a model that was built from a config.
        raise LookupError("base_model_name_or_path")
    base = FusedName.parse(name)
    return base if base.commit else base._replace(commit=adapter_config.get("revision"))


def embedded_folder(name: str) -> str | None:
    """Return the folder of an embedded base model, or None if no installed package t5fusion holds it."""
    try:
        package = find_spec("t5fusion")
    except (ImportError, ValueError):
        package = None
    package_folders = (package and package.submodule_search_locations) or ()
    folders = [os.path.join(package_folder, name) for package_folder in package_folders]
    return next((folder for folder in folders if os.path.isfile(os.path.join(folder, "config.json"))), None)


def resolve_embedded(name: Any) -> Any:
    """Return the folder of the embedded base model with this name, and any other name unchanged.

    Raises:
        OSError: The name is that of an embedded base model, and the installed package t5fusion does not hold it, or
            there is no such package.
    """
    if name not in EMBEDDED:
        return name
    folder = embedded_folder(name)
    if folder is None:
        raise OSError(
            f"no package t5fusion that holds the base model {name} is installed here. Install or upgrade t5fusion, "
            "or use a bundle that `t5fusion export --kind standalone` wrote, which holds all weights."
        )
    return folder


def is_path(name: Any) -> bool:
    """Return whether a name can only be a path. Any other name may be the id of a repository."""
    text = str(name)
    return text.startswith((".", "~")) or os.path.isabs(text) or text.count("/") > 1


def check_path(name: Any) -> None:
    """Check that `name` exists if it can only be a path.

    Raises:
        OSError: There is no such folder.
    """
    text = str(name)
    if is_path(name) and not os.path.exists(text):
        hint = " (`~` is not expanded.)" if text.startswith("~") else ""
        raise OSError(NO_FOLDER.format(text) + hint)


def first_line(error: object) -> str:
    """Return the first line of an error's message without its full stop, or the error's type if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def not_in_cache(name: Any, setting: str = "HF_HUB_OFFLINE") -> str:
    """Say that a name is neither a folder nor in the Hub's cache, and that `setting` forbids to ask the Hub."""
    return (
        f"there is no folder {name}. If it is a repository on the Hub: this machine's cache does not hold it, and "
        f"{setting} is set. Check the path, or unset {setting}."
    )


def hub_unreachable(name: Any, cause: object) -> str:
    """Say that a name is not a folder, and that the Hub could not be asked for it because of `cause`."""
    return (
        f"there is no folder {name}, and the Hub could not be reached for a repository of this name "
        f"({first_line(cause)}). Check the path, or the network."
    )


def _why_not_found(name: Any, error: BaseException, is_local_only: bool) -> str | None:
    """Return a sentence that says why there is neither a folder nor a repository; None for other errors.

    The errors of the Hub's client are recognised by name, because `t5fusion --help` imports this file, and importing
    the client would take long.
    """
    cause: BaseException | None = error
    while cause is not None:
        class_names = {each.__name__ for each in type(cause).__mro__}
        if "GatedRepoError" in class_names:  # transformers' own message says where to ask for access.
            return None
        if "RepositoryNotFoundError" in class_names:
            return (
                f"there is no folder {name}, and the Hub has no repository of this name, or it is private and your "
                "token may not see it. Check the name; for a private repository, log in with `hf auth login`, or pass "
                "`token=`."
            )
        if "HFValidationError" in class_names:
            return NO_FOLDER.format(name)
        if "LocalEntryNotFoundError" in class_names:
            is_offline = cause.__cause__ is None or type(cause.__cause__).__name__ == "OfflineModeIsEnabled"
            if is_offline:
                return not_in_cache(name, "`local_files_only`" if is_local_only else "HF_HUB_OFFLINE")
            return hub_unreachable(name, cause.__cause__)
        cause = cause.__cause__
    return None


@contextmanager
def missing_in_one_sentence(name: Any, is_local_only: bool = False) -> Iterator[None]:
    """Replace transformers' error for a name that is neither a folder nor a repository within reach by a shorter one.

    transformers only says that it could not connect to the Hub, even if the name is a mistyped folder.

    Args:
        name: The name that is being loaded.
        is_local_only: Whether the caller passes `local_files_only=True`.

    Raises:
        OSError: There is no such folder, and no such repository within reach. Other errors pass unchanged.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        sentence = None if os.path.isdir(name) else _why_not_found(name, error, is_local_only)
        if sentence is None:
            raise
        raise OSError(sentence) from error


def name_to_record(name: Any) -> Any:
    """Return the name to record for a base model: the name of an embedded one; otherwise its folder or id, unchanged.

    If a folder of the user is called like an embedded base model, its absolute path is recorded, so that the name
    cannot mean the embedded one.
    """
    if not os.path.isdir(name):
        return name
    for embedded in EMBEDDED:
        folder = embedded_folder(embedded)
        if folder is not None and os.path.samefile(name, folder):
            return embedded
    return os.path.abspath(name) if str(name) in EMBEDDED else name


def was_embedded(base_model: Any, adapter_folder: Any) -> bool:
    """Return whether `base_model`, the name that an adapter recorded, is a former path of the base model "tiny_t5".

    Earlier code recorded the path at which t5fusion was installed, which may no longer exist. At that time, "tiny_t5"
    was the only embedded base model.

    Args:
        base_model: Name or path that the adapter's config records.
        adapter_folder: Folder of the adapter: a run folder, or a checkpoint inside one.
    """
    path = str(base_model).replace("\\", "/")
    if "/" not in path or os.path.exists(base_model) or path.rpartition("/")[2] != FIRST_EMBEDDED:
        return False
    if path.split("/")[-2] == "t5fusion":
        return True
    for run_folder in (adapter_folder, os.path.join(adapter_folder, "..", "..")):
        try:
            with open(os.path.join(run_folder, "training.json"), encoding="utf-8") as file:
                return bool(json.load(file)["options"]["base"] == FIRST_EMBEDDED)
        except (OSError, ValueError, LookupError, TypeError):
            continue
    return False
