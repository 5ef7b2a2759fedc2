"""The hook for pushes: an adapter that the Trainer or PEFT pushes then loads in one line, without this package.

PEFT names the base model in an adapter's config. If it named a plain T5, readers would load the plain T5 and lose the
fusion layer. So the config names the repository that the adapter is pushed to. The code and the config that build the
fused model are pushed with the adapter, as in a bundle. If the fused model is on the Hub already, the config keeps its
name, and nothing is added.

T5FUSION_PUSH_HOOK=0 switches all of this off. PEFT then writes a card that names "T5WithFusion(ID@COMMIT)" as the base
model, and the Hub refuses that card when the Trainer pushes it. `trainer.remove_callback(PushCallback)` switches off
only a part: no code is pushed, but the card still names the base model by its id.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from pathlib import Path

from huggingface_hub import ModelCard, whoami
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from peft import PeftConfig, PeftModel
from peft.auto import _BaseAutoPeftModel
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..common.remote_code import write_code
from ..modeling_t5fusion import T5WithFusion
from ..naming_t5fusion import NOT_PUSHED, UNPUSHED_BASE, FusedName
from .switches import PUSH, is_on
from .trainer_hook import add_to_fused_models

BASE_TAG = "base_model:"  # prefix of the Hub's tags for what a model is based on


def fused_model_to_push(model) -> T5WithFusion | None:
    """Return the fused model beneath an adapter if its code and config are pushed with the adapter, otherwise None.

    They are not pushed without an adapter or a fused model, if the fused model itself is on the Hub, or if the base
    model is in a local folder, which no reader could load.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not is_on(PUSH) or not isinstance(base, T5WithFusion) or not getattr(model, "peft_config", None):
        return None
    # Neither a local folder nor a fused model on the Hub has a commit.
    return base if FusedName.parse(base.name_or_path).commit else None


@cache  # Every save asks for the owner, and the Hub limits the number of requests.
def full_id(name: str, token: str | bool | None) -> str:
    """Return a repository's id as OWNER/NAME. For a name without an owner, OWNER is the owner of the token."""
    return name if "/" in name else f"{whoami(token=token)['name']}/{name}"


class PushCallback(TrainerCallback):
    """Callback that adds code and config to the adapter that a `Trainer(push_to_hub=True)` pushes.

    `trainer.remove_callback(PushCallback)` removes the callback.
    """

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control, model=None, **kwargs):
        if args.push_to_hub:
            self.name_target(args, state, model)

    on_train_begin = on_init_end  # A hyperparameter search builds its models after the Trainer.

    def on_save(self, args: TrainingArguments, state: TrainerState, control, model=None, **kwargs):
        checkpoint = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if args.push_to_hub and checkpoint.is_dir() and (base := self.name_target(args, state, model)) is not None:
            write_code(base, checkpoint)  # The checkpoint then loads from this folder too, without the Hub.

    def on_push_begin(self, args: TrainingArguments, state: TrainerState, control, model=None, **kwargs):
        if (base := self.name_target(args, state, model)) is not None:
            write_code(base, Path(args.output_dir))

    def name_target(self, args: TrainingArguments, state: TrainerState, model) -> T5WithFusion | None:
        """Set the base model in the adapters' configs to the repository that they are pushed to.

        Returns:
            The fused model beneath the adapters, or None if there is nothing to do.
        """
        base = fused_model_to_push(model) if state.is_world_process_zero else None
        if base is not None:
            repository = full_id(args.hub_model_id or Path(args.output_dir).absolute().name, args.hub_token)
            for adapter in model.peft_config.values():
                adapter.base_model_name_or_path = repository
        return base


def push_with_code(model, push: Callable, repo_id: str, *args, **kwargs):
    """Push a model's adapter, with the code and the config of the fused model beneath.

    Args:
        model: The model with the adapter, whose `save_pretrained` the push calls.
        push: The `push_to_hub` of PEFT or transformers.
        repo_id: The repository.
        *args, **kwargs: Further arguments of `push`.
    """
    base = fused_model_to_push(model)
    if base is None:
        return push(repo_id, *args, **kwargs)
    with _saving_code(model, base, full_id(repo_id, kwargs.get("token"))):
        return push(repo_id, *args, **kwargs)


@contextmanager
def _saving_code(model, base: T5WithFusion, repository: str) -> Iterator[None]:
    """Make `model.save_pretrained` name `repository` as the base model, and write code and config, in this context."""
    names = {name: adapter.base_model_name_or_path for name, adapter in model.peft_config.items()}
    save = model.save_pretrained

    def save_pretrained(folder, *args, **kwargs):
        save(folder, *args, **kwargs)
        write_code(base, Path(folder))

    for adapter in model.peft_config.values():
        adapter.base_model_name_or_path = repository
    model.save_pretrained = save_pretrained
    try:
        yield
    finally:
        del model.save_pretrained
        for name, adapter in model.peft_config.items():
            adapter.base_model_name_or_path = names[name]


def name_base_in_card(file: Path, model: T5WithFusion, earlier_base: str | list[str] | None) -> None:
    """Correct the base model in a card that PEFT wrote: a path, or "T5WithFusion(ID@COMMIT)", which the Hub refuses.

    It becomes the Hub id. If there is none, it becomes the base model that the card named before, if it named one;
    otherwise the entry is removed.

    Args:
        file: The card.
        model: The fused model beneath the adapter.
        earlier_base: The base model that the card named before PEFT wrote it.
    """
    card = ModelCard.load(file)
    name = FusedName.parse(model.name_or_path).base_model
    has_id = is_hub_id(str(name))
    kept_base = earlier_base if isinstance(earlier_base, str) and is_hub_id(earlier_base) else None
    card.data.base_model = name if has_id else kept_base
    tags = [tag for tag in card.data.tags or [] if not tag.startswith(BASE_TAG)]
    card.data.tags = sorted([*tags, f"{BASE_TAG}adapter:{name}"] if has_id else tags) or None
    card.save(file)


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form of a Hub id and is not a local folder."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).is_dir()


def _wrap_push(push: Callable) -> Callable:
    """Return `T5WithFusion.push_to_hub`, wrapped so that it pushes the code with an adapter."""

    @wraps(push)
    def push_to_hub(self, repo_id, *args, **kwargs):
        return push_with_code(self, push.__get__(self), repo_id, *args, **kwargs)

    return push_to_hub


def _wrap_auto(load: Callable) -> Callable:
    """Return `from_pretrained` of PEFT's Auto classes, wrapped so that an unpushed adapter's error says what to do."""

    @wraps(load)
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        try:
            return load(cls, pretrained_model_name_or_path, *args, **kwargs)
        except (OSError, ValueError) as error:
            folder = Path(pretrained_model_name_or_path)
            if not is_on(PUSH) or not is_unpushed(folder):
                raise
            raise OSError(
                f"{cls.__name__} loads an adapter's base model from the Hub by its name, but the adapter in {folder} "
                f'is {NOT_PUSHED}. Type T5WithFusion.from_pretrained("{folder}") to load both. To continue training, '
                f'type PeftModel.from_pretrained(T5WithFusion(BASE), "{folder}", is_trainable=True), where BASE is the '
                "T5 that the adapter was trained on. Or push the adapter first."
            ) from error

    return from_pretrained


def is_unpushed(folder: Path) -> bool:
    """Return whether a folder holds an adapter on a fused model that was not pushed.

    No Auto class can load such an adapter's base model by its name. After a push, the name is a repository's.
    """
    if not (folder / "adapter_config.json").is_file():
        return False
    name = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    return name == UNPUSHED_BASE or FusedName.parse(name).base_model != name


def register() -> None:
    """Add `PushCallback` to the Trainers of fused models; wrap `T5WithFusion.push_to_hub` and PEFT's Auto classes."""
    add_to_fused_models(PushCallback)
    _BaseAutoPeftModel.from_pretrained = classmethod(_wrap_auto(_BaseAutoPeftModel.from_pretrained.__func__))
    # This method pushes the adapters that transformers attached (`model.add_adapter`, `model.load_adapter`).
    T5WithFusion.push_to_hub = _wrap_push(T5WithFusion.push_to_hub)
