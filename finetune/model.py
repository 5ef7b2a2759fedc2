"""Build the model to train: the fused model, its fusion layer started, with LoRA on top."""

from pickle import UnpicklingError

import torch
from peft import get_peft_model
from safetensors import SafetensorError
from torch import nn

from ..common.base_models import base_error, base_folder
from ..modeling_t5fusion import T5WithFusion
from ..processing_t5fusion import T5FusionProcessor
from .options import TrainingOptions

DAMAGED = (SafetensorError, UnpicklingError, EOFError)  # what a file of weights that is torn or foreign raises


def build_model(
    options: TrainingOptions, processor: T5FusionProcessor, rows: list[dict], commit: str | None = None
) -> nn.Module:
    """The fused model, its fusion layer started, with LoRA on top unless `options.full`.

    Args:
        commit: of the base; None for its main.

    Raises:
        ValueError: model and tokenizer do not mean the same token by `<lexical>`, or the base is no T5, or it lacks one
            of `options.target_modules`.
        OSError: the base cannot be loaded.
    """
    try:
        model = T5WithFusion(
            base_folder(options.base),
            revision=commit or "main",
            lexical_dim=processor.lexical_dim,
            dtype=torch.float32,
        )
    except (OSError, *DAMAGED) as error:
        raise base_error(options.base, error) from error
    if getattr(model, "peft_config", None):
        raise ValueError(
            f"{options.base} holds an adapter, beside which no other is trained. Name the T5 beneath it, or what "
            "`t5fusion export --kind merged` makes of the two."
        )
    if model.config.lexical_token_id != processor.lexical_token_id:
        raise ValueError(
            f"<lexical> is token {processor.lexical_token_id} of the tokenizer and {model.config.lexical_token_id} of "
            f"the model. Use the tokenizer that belongs to {options.base}, with no other tokens added."
        )
    with_vectors = [row for row in rows if row.get("lexical_embeds") is not None]
    if options.fusion_start == "targets" and options.train_fusion and with_vectors:
        model.fit_fusion(with_vectors)
    if options.full:
        model.encoder.fusion.requires_grad_(options.train_fusion)
        return model
    check_target_modules(model, options)
    lora: dict[str, object] = {"r": options.rank, "lora_alpha": options.alpha, "lora_dropout": options.dropout}
    if not (options.train_fusion and with_vectors):
        lora["modules_to_save"] = []
    if options.target_modules is not None:
        lora["target_modules"] = list(options.target_modules)
    torch.manual_seed(options.seed)
    return get_peft_model(model, model.lora_config(**lora))


def check_target_modules(model: T5WithFusion, options: TrainingOptions) -> None:
    """ValueError unless each of `options.target_modules` is a module that LoRA can be put on.

    PEFT itself is content if one of them is.
    """
    if options.target_modules is None:
        return
    fit = {
        name
        for name, module in model.named_modules()
        # The table is left out since T5 reads it by another of its names, past an adapter on this one. The fusion layer
        # is left out since PEFT puts no adapter on what trains as a whole.
        if isinstance(module, (nn.Linear, nn.Embedding))
        and module is not model.shared
        and not (options.train_fusion and ".fusion." in name)
    }
    unknown = [
        wanted for wanted in options.target_modules if not any(f".{name}".endswith(f".{wanted}") for name in fit)
    ]
    if unknown:
        raise ValueError(
            f"{options.base} has no module {', '.join(map(repr, unknown))} that LoRA can be put on; expected any of "
            f"{', '.join(sorted({name.rpartition('.')[2] for name in fit}))}."
        )


def trainable_share(model: nn.Module) -> tuple[int, int]:
    """Numbers that train, and all."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)
