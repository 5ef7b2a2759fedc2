"""What an adapter calls its base model, and the name of the T5 that the package t5fusion carries."""

import json
import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from types import MappingProxyType
from typing import NamedTuple

EMBEDDED = "tiny_t5"  # names the T5 that the package t5fusion carries, wherever that is installed
# What an adapter in a bundle calls its base until `push` names the repository. It is no id, so no class loads another.
NOT_PUSHED = "not on a Hub yet"
UNPUSHED_BASE = (
    f"{NOT_PUSHED}; push it, or type AutoModelForSeq2SeqLM.from_pretrained(FOLDER, trust_remote_code=True), with "
    "transformers 5.5 or later"
)
FUSED = re.compile(r"T5WithFusion\((.+?)(?:@([0-9a-f]{40}))?(?:, (\{.*\}))?\)")


class FusedName(NamedTuple):
    """What adapters call their base: `T5WithFusion(ID@COMMIT, {"lexical_dim": 512})`.

    It is not the plain T5's own name, under which other classes would load the plain T5. It records the commit, and the
    choices that were made when the fused model was built, so that a reload needs nothing but the adapter's folder.
    """

    plain: str  # Hub id or folder of the checkpoint that the fused model was built from
    commit: str | None = None  # or another revision
    # fields of the config that differ from the checkpoint's, and perhaps its "subfolder"
    choices: Mapping = MappingProxyType({})

    @classmethod
    def parse(cls, name) -> "FusedName":
        """The parts of such a name; any other name is the checkpoint's own."""
        parts = FUSED.fullmatch(name) if isinstance(name, str) else None
        return cls(parts[1], parts[2], json.loads(parts[3] or "{}")) if parts else cls(name)

    def __str__(self) -> str:
        commit = f"@{self.commit}" if self.commit else ""
        choices = f", {json.dumps(dict(self.choices), sort_keys=True)}" if self.choices else ""
        return f"T5WithFusion({self.plain}{commit}{choices})"

    @property
    def hub(self) -> dict:
        """The Hub keywords that the name stands for."""
        place = {"revision": self.commit, "subfolder": self.choices.get("subfolder")}
        return {key: value for key, value in place.items() if value}

    @property
    def fields(self) -> dict:
        """The fields of the config that the name stands for."""
        return {key: value for key, value in self.choices.items() if key != "subfolder"}

    @property
    def keywords(self) -> dict:
        """What `T5WithFusion(plain, **keywords)` takes to build the same model."""
        return self.fields | self.hub


def embedded_folder() -> str | None:
    """Where the T5 is that the package t5fusion carries; None where that package is not installed."""
    try:
        package = find_spec("t5fusion")
    except (ImportError, ValueError):
        package = None
    places = (package and package.submodule_search_locations) or ()
    folders = [os.path.join(place, EMBEDDED) for place in places]
    return next((folder for folder in folders if os.path.isfile(os.path.join(folder, "config.json"))), None)


def resolve_embedded(name):
    """The folder of the T5 that the package t5fusion carries, for its name "tiny_t5"; any other name as it is.

    Raises:
        OSError: that package is not installed.
    """
    if name != EMBEDDED:
        return name
    folder = embedded_folder()
    if folder is None:
        raise OSError(
            f"{EMBEDDED} is the T5 that the package t5fusion carries, which is not installed here. Install t5fusion, "
            "or use a bundle that `t5fusion export --kind standalone` made: it needs neither."
        )
    return folder


def name_of_embedded(folder):
    """ "tiny_t5" for the folder of the T5 that the package t5fusion carries; any other name as it is."""
    if not os.path.isdir(folder):
        return folder
    embedded = embedded_folder()
    if embedded is not None and os.path.samefile(folder, embedded):
        return EMBEDDED
    return os.path.abspath(folder) if str(folder) == EMBEDDED else folder  # by its name it would be the other


def was_embedded(base, adapter) -> bool:
    """Whether `base`, named by an adapter's folder, is where t5fusion was installed when an earlier release of it
    trained the adapter: those releases wrote the path.
    """
    path = str(base).replace("\\", "/")
    if "/" not in path or os.path.exists(base) or path.rpartition("/")[2] != EMBEDDED:
        return False
    if path.split("/")[-2] == "t5fusion":
        return True
    for folder in (adapter, os.path.join(adapter, "..", "..")):  # a run, or a checkpoint of one
        try:
            with open(os.path.join(folder, "training.json"), encoding="utf-8") as file:
                return json.load(file)["options"]["base"] == EMBEDDED
        except (OSError, ValueError, LookupError, TypeError):
            continue
    return False
