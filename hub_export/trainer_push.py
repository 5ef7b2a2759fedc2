"""`Trainer(push_to_hub=True)`: what it pushes of an adapter on a plain T5 is loaded in one line, as a bundle is."""

from pathlib import Path

from huggingface_hub import whoami
from peft import PeftModel
from transformers import TrainerCallback, TrainerState, TrainingArguments, trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..modeling_t5fusion import T5WithFusion, plain_name
from .code import write_code


class FusedPushCallback(TrainerCallback):
    """The repository that the Trainer pushes to becomes the base of its own adapter, by code and config beside it.

    PEFT writes into an adapter what its base was built from, and of a plain T5 of the Hub nobody builds a fused one
    without this package. (A base that is fused already, and on the Hub, stays named.) Importing `t5fusion` gives this
    callback to every Trainer; it does nothing for other models. `trainer.remove_callback(FusedPushCallback)` undoes it.
    """

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
        if base is None:
            return None
        repository = repository_of(args)
        for adapter in model.peft_config.values():
            if adapter.base_model_name_or_path == base.name_or_path:
                adapter.base_model_name_or_path = repository
        return base


def fused_beneath(model) -> T5WithFusion | None:
    """The fused model beneath an adapter, made of a plain T5 of the Hub; None for any other model."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(base, T5WithFusion) or not getattr(model, "peft_config", None):
        return None
    is_plain = plain_name(base.name_or_path) != base.name_or_path
    return base if is_plain and base.config.backbone_revision else None  # a folder's has no revision, nor readers


def repository_of(args: TrainingArguments) -> str:
    """The full id, OWNER/NAME, of the repository that the Trainer pushes to."""
    name = args.hub_model_id or Path(args.output_dir).absolute().name
    return name if "/" in name else f"{whoami(token=args.hub_token)['name']}/{name}"


def register_with_trainer() -> None:
    """Every Trainer that is made from now on has the callback."""
    if FusedPushCallback not in trainer.DEFAULT_CALLBACKS:
        trainer.DEFAULT_CALLBACKS.append(FusedPushCallback)
