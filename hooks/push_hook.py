"""An adapter on a plain T5 that the Trainer or PEFT pushes becomes its own base: code and config go beside it.

PEFT writes into an adapter what its base was built from, and of a plain T5 of the Hub nobody builds a fused one without
this package. So here, as in a bundle, the repository that is pushed to is named, which then says how to build it. (A
base that is fused already, and on the Hub, needs nothing of this, and stays named.)
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
from transformers import TrainerCallback, TrainerState, TrainingArguments, trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..common.remote_code import write_code
from ..modeling_t5fusion import T5WithFusion
from ..naming_t5fusion import NOT_PUSHED, UNPUSHED_BASE, FusedName

OF_BASE = "base_model:"  # begins the tags by which the Hub knows what a model is based on


def fused_beneath(model) -> T5WithFusion | None:
    """The fused model beneath an adapter, made of a plain T5 of the Hub; None for any other model."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(base, T5WithFusion) or not getattr(model, "peft_config", None):
        return None
    return base if FusedName.parse(base.name_or_path).commit else None  # a folder's has none, nor readers


@cache  # the Hub does not like to be asked at each save
def full_id(name: str, token: str | bool | None) -> str:
    """OWNER/NAME of a repository; one without an owner is the token's."""
    return name if "/" in name else f"{whoami(token=token)['name']}/{name}"


class OwnBaseCallback(TrainerCallback):
    """Of `Trainer(push_to_hub=True)`; `trainer.remove_callback(OwnBaseCallback)` takes it away."""

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control, model=None, **kwargs):
        if args.push_to_hub:
            self.name_base(args, state, model)

    on_train_begin = on_init_end  # a search of hyperparameters makes its models anew

    def on_save(self, args: TrainingArguments, state: TrainerState, control, model=None, **kwargs):
        checkpoint = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if args.push_to_hub and checkpoint.is_dir() and (base := self.name_base(args, state, model)) is not None:
            write_code(base, checkpoint)  # it is loaded from here without the Hub

    def on_push_begin(self, args: TrainingArguments, state: TrainerState, control, model=None, **kwargs):
        if (base := self.name_base(args, state, model)) is not None:
            write_code(base, Path(args.output_dir))

    def name_base(self, args: TrainingArguments, state: TrainerState, model) -> T5WithFusion | None:
        """Tells the adapters that their base is the repository that is pushed to; returns that base, if it can be."""
        base = fused_beneath(model) if state.is_world_process_zero else None
        if base is not None:
            repository = full_id(args.hub_model_id or Path(args.output_dir).absolute().name, args.hub_token)
            for adapter in model.peft_config.values():
                adapter.base_model_name_or_path = repository
        return base


def with_its_base(push: Callable) -> Callable:
    """`push_to_hub` of a class whose models may be adapters."""

    @wraps(push)
    def push_to_hub(self, repo_id, *args, **kwargs):
        base = fused_beneath(self)
        if base is None:
            return push(self, repo_id, *args, **kwargs)
        with saved_with_its_base(self, base, full_id(repo_id, kwargs.get("token"))):
            return push(self, repo_id, *args, **kwargs)

    return push_to_hub


@contextmanager
def saved_with_its_base(model, base: T5WithFusion, repository: str) -> Iterator[None]:
    """Meanwhile, `model.save_pretrained` names that repository as the adapters' base, and writes code and config."""
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


def with_its_base_named(write: Callable) -> Callable:
    """`create_or_update_model_card` of PEFT, which the Trainer calls as well, for cards that the Hub takes."""

    @wraps(write)
    def create_or_update_model_card(self, output_dir, *args, **kwargs):
        file = Path(output_dir) / "README.md"
        earlier = ModelCard.load(file).data.base_model if file.exists() else None
        write(self, output_dir, *args, **kwargs)
        if isinstance(self.get_base_model(), T5WithFusion):
            name_base(file, self.get_base_model(), earlier)

    return create_or_update_model_card


def name_base(file: Path, model: T5WithFusion, earlier: str | list[str] | None) -> None:
    """Names in a card, which PEFT has written, the T5 beneath the adapter by its id on the Hub, or else nothing.

    PEFT writes what its base was built from: a path, or "T5WithFusion(ID@COMMIT)". The Hub refuses a card with either.

    Args:
        earlier: the base that the card named before, which stays where there is no id.
    """
    card = ModelCard.load(file)
    name = FusedName.parse(model.name_or_path).base_model
    is_id = is_hub_id(str(name))
    card.data.base_model = name if is_id else earlier if isinstance(earlier, str) and is_hub_id(earlier) else None
    tags = [tag for tag in card.data.tags or [] if not tag.startswith(OF_BASE)]
    card.data.tags = sorted([*tags, f"{OF_BASE}adapter:{name}"] if is_id else tags) or None
    card.save(file)


def is_hub_id(name: str) -> bool:
    """Whether a name can be that of a repository, and is no folder here."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).is_dir()


def with_a_hint(load: Callable) -> Callable:
    """`from_pretrained` of PEFT's Auto classes, whose error over an adapter that was not pushed says what to type."""

    @wraps(load)
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        try:
            return load(cls, pretrained_model_name_or_path, *args, **kwargs)
        except (OSError, ValueError) as error:
            folder = Path(pretrained_model_name_or_path)
            if not is_unpushed(folder):
                raise
            raise OSError(
                f"{cls.__name__} loads an adapter's base from the Hub by its name, and the adapter in {folder} is "
                f'{NOT_PUSHED}. Type T5WithFusion.from_pretrained("{folder}") for base and adapter in one; to go on '
                f'training, PeftModel.from_pretrained(T5WithFusion(BASE), "{folder}", is_trainable=True), BASE being '
                "the T5 that it was trained on; or push it first."
            ) from error

    return from_pretrained


def is_unpushed(folder: Path) -> bool:
    """Whether a folder holds an adapter of ours whose base no Auto class can find by its name."""
    if not (folder / "adapter_config.json").is_file():
        return False
    name = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    return name == UNPUSHED_BASE or FusedName.parse(name).base_model != name


def register() -> None:
    """Every Trainer that is made from now on has the callback; PEFT, which asks nobody when it pushes, is wrapped."""
    if OwnBaseCallback not in trainer.DEFAULT_CALLBACKS:
        trainer.DEFAULT_CALLBACKS.append(OwnBaseCallback)
        _BaseAutoPeftModel.from_pretrained = classmethod(with_a_hint(_BaseAutoPeftModel.from_pretrained.__func__))
        PeftModel.create_or_update_model_card = with_its_base_named(PeftModel.create_or_update_model_card)
        for kind in (PeftModel, T5WithFusion):
            kind.push_to_hub = with_its_base(kind.push_to_hub)
