"""Find the base model that an adapter was trained on, and choose the base model that readers of its bundle get."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id
from transformers.configuration_utils import PretrainedConfig
from transformers.utils import find_adapter_config_file

from ..common.base_models import base_error, base_source
from ..common.run_folder import RunFolder
from ..common.saved_files import check_numbers, one_sentence_errors
from ..loading_t5fusion import commit_of
from ..modeling_t5fusion import T5WithFusion
from ..naming_t5fusion import name_to_record
from .kinds import Kind


@dataclass(frozen=True)
class BaseModel:
    """A base model, or an untuned fused model: a Hub id at a revision, or a folder.

    Args:
        name: The Hub id, or the path of the folder.
        revision: Branch, tag or commit of the Hub repository. None stands for "main". Folders have none.
    """

    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> "BaseModel":
        """Return the model that `ID`, `ID@REVISION`, a folder, or "tiny_t5" names."""
        if Path(text).is_dir():
            return cls(base_source(text))
        name, _, revision = text.partition("@")
        return cls(base_source(name), revision or None)

    @classmethod
    def of_run(cls, run: RunFolder) -> "BaseModel | None":
        """Return the base model that a run folder was trained on, or None if no file in the folder names it."""
        fused_name = run.trained_on
        return None if fused_name is None else cls(base_source(fused_name.base_model), fused_name.commit)

    def __str__(self) -> str:
        name = name_to_record(self.name)  # "tiny_t5_v2" instead of the path inside this package
        return name if self.revision is None else f"{name}@{self.revision}"

    @property
    def is_folder(self) -> bool:
        """Whether the name is a path and not a Hub id; the folder need not exist on this machine."""
        try:
            validate_repo_id(self.name)
        except HFValidationError:
            return True
        return Path(self.name).is_dir()

    def load(self, **options) -> T5WithFusion:
        """Load this model as an untuned fused model.

        Args:
            **options: Keywords of `T5WithFusion`.

        Raises:
            OSError: It cannot be loaded.
            ValueError: It holds an adapter, or weights that are not numbers.
        """
        try:
            with one_sentence_errors(f"the base model {self}"):
                model = T5WithFusion(self.name, revision=self.revision or "main", **options)
        except OSError as error:
            raise base_error(str(self), error) from error
        if getattr(model, "peft_config", None):
            raise ValueError(f"{self} holds an adapter. Name the base model of that adapter with --base-model ID.")
        check_numbers(model.state_dict().items(), str(self))
        return model

    def without_adapter(self) -> "BaseModel":
        """Return the adapter's base model if this is a repository with an adapter, and otherwise this model.

        An adapter that `push` or the Trainer sent names its own repository as its base model.

        Raises:
            OSError: The Hub does not answer, or does not know the id.
        """
        hub_kwargs = {"revision": self.revision or "main"}
        try:
            config, _ = PretrainedConfig.get_config_dict(self.name, **hub_kwargs)
            if config.get("backbone") and find_adapter_config_file(self.name, **hub_kwargs) is not None:
                return BaseModel(config["backbone"], config.get("backbone_revision"))
        except OSError as error:
            raise base_error(str(self), error) from error
        return self

    def pinned(self) -> "BaseModel":
        """Return this model with the commit that its revision names now; a folder stays as it is.

        Raises:
            OSError: The Hub does not answer, or does not know the id or the revision.
        """
        if self.is_folder:
            return self
        try:
            return replace(self, revision=commit_of(self.name, {"revision": self.revision or "main"}))
        except OSError as error:
            raise base_error(str(self), error) from error


@dataclass(frozen=True)
class BaseChoice:
    """Which base model an adapter was trained on, and which one readers get.

    Args:
        trained_on: The base model of the training. If no adapter is exported, it is the exported model itself.
        published: The base model on the Hub that readers get. None if it is a folder, or if no adapter is exported.
        options: Keywords of `T5WithFusion` that load `trained_on` as it was in training.
    """

    trained_on: BaseModel
    published: BaseModel | None = None
    options: dict[str, Any] = field(default_factory=dict)


def choose_base(run: RunFolder, given: str | None, kind: Kind, say: Callable[[str], None]) -> BaseChoice:
    """Choose the base model of a run folder's bundle. Models on the Hub are pinned to a commit.

    Args:
        run: The run folder. If it holds no adapter, it is the model itself.
        given: The user's `--base-model`, or None for the base model that the adapter was trained on.
        kind: The kind of the bundle. Readers of an "adapter" need a base model on the Hub, since the bundle carries no
            base weights. For the other kinds, readers get none if the base model is a folder.
        say: Function that gets a line about each assumption that cannot be checked.

    Raises:
        ValueError: No file names the base model of the training; readers cannot load theirs from the Hub; or `given`
            has no effect.
        OSError: A base model cannot be loaded.
    """
    if not run.has_adapter:
        if given is not None:
            raise idle_base_model()
        return BaseChoice(BaseModel(str(run.path)), options=run.load_options)
    given_base = BaseModel.parse(given) if given else None
    trained_on = find_trained_on(run, given_base, say)
    published = given_base or trained_on
    if published.is_folder and kind == "adapter":
        raise ValueError(
            f"the base model is {published}, a folder of this machine that readers do not have. Name the same model "
            "on the Hub with --base-model ID, or include its weights with --kind standalone."
        )
    if trained_on.revision is None and not trained_on.is_folder and published.name == trained_on.name:
        if published.revision is None:
            check_no_other_commit(published)
        trained_on = published  # The user's revision, if any, says which commit the training used.
    trained_on = trained_on.pinned()
    subfolder = run.adapter_base.choices.get("subfolder")
    if subfolder and kind == "adapter":
        raise ValueError(
            f"the adapter was trained on the subfolder {subfolder} of {trained_on}, and readers of a bundle get a base "
            "model from the root of its repository. Use --kind standalone or merged."
        )
    return BaseChoice(trained_on, None if published.is_folder else published.pinned(), run.load_options)


def idle_base_model() -> ValueError:
    """Return the error for a base model that the user names, though no adapter is exported."""
    return ValueError("--base-model has no effect without an adapter. Leave it out.")


def find_trained_on(run: RunFolder, given: BaseModel | None, say: Callable[[str], None]) -> BaseModel:
    """Return the base model that an adapter was trained on, or `given` if it is unknown or its folder is gone.

    Raises:
        ValueError: It is unknown or gone, and the user gave none.
        OSError: The Hub does not answer, or does not know its id.
    """
    trained_on = BaseModel.of_run(run)
    if trained_on is None:
        if given is None:
            raise ValueError(f"{run} does not name the base model it was trained on. Name it with --base-model ID.")
        say(f"{run} does not name the base model it was trained on. Assumed: {given}.")
        trained_on = given
    if not trained_on.is_folder:
        return trained_on.without_adapter()
    if Path(trained_on.name).is_dir():
        return trained_on
    if given is None:
        raise ValueError(
            f"the base model that the adapter was trained on, {trained_on}, is not there. Put the folder back, or "
            "name the same model on the Hub with --base-model ID."
        )
    say(f"the base model of the training, {trained_on}, is not there. Assumed to be the same: {given}.")
    return given


def check_no_other_commit(base_model: BaseModel) -> None:
    """Check that this machine's cache of the Hub holds no commit with different weights: training may have used it.

    Raises:
        ValueError: The cache holds a different commit with different weights.
    """
    current = base_model.pinned().revision
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=base_model.name, repo_type="model") / "snapshots"
    # In the cache, each file is a link to a blob that is named by its digest.
    blobs = {
        commit.name: sorted(file.resolve().name for file in commit.glob("*") if file.suffix in (".safetensors", ".bin"))
        for commit in folder.glob("*")
    }
    others = [
        commit for commit, files in blobs.items() if files and commit != current and files != blobs.get(str(current))
    ]
    if others:
        raise ValueError(
            f"{base_model.name} has changed: it is now at {current}, and the cache also holds "
            f"{', '.join(sorted(others))}, with other weights, which the adapter may have been trained on. Name the "
            f"right one: --base-model {base_model.name}@COMMIT."
        )


def load_fused_model(choice: BaseChoice, kind: Kind) -> T5WithFusion:
    """Load the model without its adapter, and record in its config the base model that readers will download.

    Raises:
        ValueError: The base model that readers get has different weights; or an adapter is to be merged into quantised
            weights.
        OSError: A base model cannot be loaded.
    """
    trained_on, published = choice.trained_on, choice.published
    fused_model = trained_on.load(**choice.options)
    if published is not None and published != trained_on:
        check_same_weights(choice, fused_model, published.load(**choice.options))
    if kind == "merged" and getattr(fused_model.config, "quantization_config", None) is not None:
        raise ValueError(
            f"{trained_on} is quantised: part of a merged LoRA would be lost by rounding. Use --kind adapter or "
            "standalone."
        )
    if kind != "fused" or trained_on.is_folder:  # A fused model on the Hub names its base model already.
        fused_model.config.backbone = published.name if published else None
        fused_model.config.backbone_revision = published.revision if published else None
    return fused_model


def check_same_weights(choice: BaseChoice, trained: T5WithFusion, published: T5WithFusion) -> None:
    """Check that the base model that readers get has the weights of the base model of the training.

    Raises:
        ValueError: It has different weights.
    """
    ours, theirs = trained.state_dict(), published.state_dict()
    differing = [key for key in ours.keys() | theirs.keys() if key not in ours or key not in theirs]
    differing += [key for key in ours.keys() & theirs.keys() if not torch.equal(ours[key].float(), theirs[key].float())]
    if differing:
        raise ValueError(
            f"the adapter was trained on {choice.trained_on}, and {choice.published} is a different model: "
            f"{len(differing)} weights differ, for example {min(differing)}. Name the right one, or use --kind "
            "standalone without --base-model."
        )
