"""The T5 beneath an adapter: what it was trained on, what its readers will get, and whether they are the same."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id
from transformers.configuration_utils import PretrainedConfig
from transformers.utils import find_adapter_config_file

from ..common.base_models import base_error, base_folder
from ..common.run_folder import read_record
from ..common.saved_files import check_numbers, read_json, told
from ..loading_t5fusion import base_in, commit_of
from ..modeling_t5fusion import T5WithFusion
from ..naming_t5fusion import EMBEDDED, was_embedded


@dataclass(frozen=True)
class Backbone:
    """A plain T5, or a fused one that is untuned: a Hub id, at a revision, or a folder."""

    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Backbone":
        """Of `ID`, `ID@REVISION`, a folder, or "tiny_t5"."""
        if Path(text).is_dir():
            return cls(base_folder(text))
        name, _, revision = text.partition("@")
        return cls(base_folder(name), revision or None)

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"

    @property
    def is_folder(self) -> bool:
        """Whether it is a path, of this machine or (no longer there) of another, and not a Hub id."""
        try:
            validate_repo_id(self.name)
        except HFValidationError:
            return True
        return Path(self.name).is_dir()

    def load(self, **options) -> T5WithFusion:
        """The fused model on it, untuned.

        Raises:
            OSError: it cannot be had. ValueError: it holds an adapter, or weights that are not numbers.
        """
        try:
            with told(f"the base {self}"):
                model = T5WithFusion(self.name, revision=self.revision or "main", **options)
        except OSError as error:
            raise base_error(str(self), error) from error
        if getattr(model, "peft_config", None):
            raise ValueError(f"{self} holds an adapter of its own. Name the T5 beneath it with --backbone ID.")
        check_numbers(model.state_dict().items(), str(self))
        return model

    def beneath(self) -> "Backbone":
        """The T5 that an adapter stands on which is its own base, as `push` and the Trainer make it; else itself."""
        hub = {"revision": self.revision or "main"}
        try:
            config, _ = PretrainedConfig.get_config_dict(self.name, **hub)
            if config.get("backbone") and find_adapter_config_file(self.name, **hub) is not None:
                return Backbone(config["backbone"], config.get("backbone_revision"))
        except OSError as error:
            raise base_error(str(self), error) from error
        return self

    def pinned(self) -> "Backbone":
        """At the commit that its revision is now; a folder stays as it is."""
        if self.is_folder:
            return self
        try:
            return replace(self, revision=commit_of(self.name, {"revision": self.revision or "main"}))
        except OSError as error:
            raise base_error(str(self), error) from error


def trained_on(source: Path) -> Backbone | None:
    """What the adapter in `source` was trained on, as far as it says."""
    record = read_record(source)
    if (source / "config.json").exists():  # saved beside the adapter, as in a bundle
        config = read_json(source / "config.json")
        if config.get("backbone"):
            return Backbone(base_folder(config["backbone"]), config.get("backbone_revision"))
    if record.get("options", {}).get("base") == "tiny_t5":  # wherever it is now
        return Backbone(base_folder("tiny_t5"))
    with told(f"the adapter in {source}"):
        base = base_in(read_json(source / "adapter_config.json"))
    if base.base_model and was_embedded(base.base_model, source):
        return Backbone(base_folder(EMBEDDED))
    return Backbone(base_folder(base.base_model), base.commit) if base.base_model else None


def choose(source: Path, given: str | None, needed: bool, say) -> tuple[Backbone, Backbone | None]:
    """What the adapter in `source` was trained on, and what its readers will get, both pinned.

    Args:
        given: `--backbone`, or None for what it was trained on.
        needed: whether readers need one of the Hub, since the bundle holds no base weights. Else it may be None.
        say: is told what cannot be checked.

    Raises:
        ValueError: there is no telling what it was trained on, or what readers would get is not on a Hub.
        OSError: the backbone cannot be loaded.
    """
    trained = trained_on(source)
    published = Backbone.parse(given) if given else trained
    if published is None:
        raise ValueError(f"{source} does not name the base it was trained on. Give it with --backbone ID.")
    if trained is None:
        say(f"{source} does not name the base it was trained on: {published} is taken for it.")
        trained = published
    if not trained.is_folder:
        trained = trained.beneath()
        published = published if given else trained
    elif not Path(trained.name).is_dir():
        if not given:
            raise ValueError(
                f"the base that the adapter was trained on, {trained}, is not there. Put it back, or name its like on "
                "the Hub with --backbone ID."
            )
        say(f"the base that the adapter was trained on, {trained}, is not there: {published} is taken for the same.")
        trained = published
    if published.is_folder and needed:
        raise ValueError(
            f"the backbone is a folder of this machine, {published}, which readers have not. Name its like on the Hub "
            "with --backbone ID, or ship its weights as well with --kind standalone."
        )
    if trained.revision is None and not trained.is_folder and published.name == trained.name:
        if published.revision is None:
            check_unambiguous(published)
        trained = published  # the user says which of its commits it was
    return trained.pinned(), None if published.is_folder else published.pinned()


def check_unambiguous(backbone: Backbone) -> None:
    """ValueError if the Hub's cache holds other weights of the same name: training may have seen those."""
    here = backbone.pinned().revision
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=backbone.name, repo_type="model") / "snapshots"
    weights = {
        commit.name: sorted(file.resolve().name for file in commit.glob("*") if file.suffix in (".safetensors", ".bin"))
        for commit in folder.glob("*")
    }  # in the cache, a file is a link to its digest
    others = [
        commit for commit, files in weights.items() if files and commit != here and files != weights.get(str(here))
    ]
    if others:
        raise ValueError(
            f"{backbone.name} has changed: it is now at {here}, and the cache also holds {', '.join(sorted(others))}, "
            f"with other weights, which the adapter may have been trained on. Say which: --backbone {backbone.name}"
            "@COMMIT."
        )


def check_same(trained: T5WithFusion, published: T5WithFusion, names: tuple[Backbone, Backbone]) -> None:
    """ValueError if the untuned models on both differ in any weight."""
    ours, theirs = trained.state_dict(), published.state_dict()
    differing = [key for key in ours.keys() | theirs.keys() if key not in ours or key not in theirs]
    differing += [key for key in ours.keys() & theirs.keys() if not torch.equal(ours[key].float(), theirs[key].float())]
    if differing:
        raise ValueError(
            f"the adapter was trained on {names[0]}, and {names[1]} is another model: {len(differing)} weights differ, "
            f"{min(differing)} is one. Name the backbone that it was trained on, or use --kind standalone."
        )
