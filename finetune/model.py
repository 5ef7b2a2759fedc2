"""Build the model to train: the fused model with an initialized fusion layer, and LoRA on top."""

from collections.abc import Sequence
from pickle import UnpicklingError

import torch
from peft import get_peft_model
from safetensors import SafetensorError
from torch import nn

from ..common.base_models import base_error, base_source
from ..modeling_t5fusion import T5WithFusion
from ..processing_t5fusion import T5FusionProcessor
from .options import TrainingOptions
from .settings import read_settings

DAMAGED_FILE_ERRORS = (SafetensorError, UnpicklingError, EOFError)  # raised for a damaged file of weights


def build_model(
    options: TrainingOptions,
    processor: T5FusionProcessor,
    rows: Sequence[dict],
    commit: str | None = None,
    fit: bool = True,
) -> nn.Module:
    """Return the fused model with an initialized fusion layer, and with LoRA on top unless `options.full`.

    Args:
        options: The options of the training.
        processor: The processor of the rows.
        rows: Rows of `inputs.prepare`. The fusion layer is fitted to them (see `T5WithFusion.fit_fusion`), or if it is
            frozen, its scales are.
        commit: Commit of the base model; None for its main branch.
        fit: Whether to fit the fusion layer. A checkpoint to resume from holds it.

    Raises:
        ValueError: Model and tokenizer have different ids for `<lexical>`; or the base model is not a T5, holds an
            adapter, or lacks one of `options.target_modules`.
        OSError: The base model cannot be loaded.
    """
    model = _load_base_model(options, processor, commit)
    with_vectors = any(row.get("lexical_embeds") is not None for row in rows)
    has_scale = any(kind.scale for kind in model.config.kinds.values())
    if fit and with_vectors and options.train_fusion and options.fusion_start == "targets":
        model.fit_fusion(rows)
    elif fit and with_vectors and (options.train_fusion or has_scale):
        model.fit_scales(rows)
    if options.full:
        model.encoder.fusion.requires_grad_(options.train_fusion)
        return model
    check_target_modules(model, options)
    lora: dict[str, object] = {"r": options.rank, "lora_alpha": options.alpha, "lora_dropout": options.dropout}
    # A frozen layer without a scale is the same in every process, so it is not saved. But its scales must be.
    holds_fusion = with_vectors and (options.train_fusion or has_scale)
    if not holds_fusion:
        lora["modules_to_save"] = []
    if options.target_modules is not None:
        lora["target_modules"] = list(options.target_modules)
    lora |= read_settings(options.settings).lora
    torch.manual_seed(options.seed)
    peft_model = get_peft_model(model, model.lora_config(**lora))
    if holds_fusion:
        model.fusion_to_fit().requires_grad_(options.train_fusion)
    return peft_model


def _load_base_model(options: TrainingOptions, processor: T5FusionProcessor, commit: str | None) -> T5WithFusion:
    """Return the base model with an untuned fusion layer, in fp32 (see `build_model` for the errors)."""
    try:
        model = T5WithFusion(
            base_source(options.base_model),
            revision=commit or "main",
            **({"vectors": processor.vectors} if processor.vectors else {"lexical_dim": processor.lexical_dim}),
            vector_dropout=options.vector_dropout,
            dtype=torch.float32,
        )
    except (OSError, *DAMAGED_FILE_ERRORS) as error:
        raise base_error(options.base_model, error) from error
    if getattr(model, "peft_config", None):
        raise ValueError(
            f"{options.base_model} holds an adapter, and `train` does not add a second one. Name its base model, or "
            "merge the two first: t5fusion export --kind merged."
        )
    if model.config.lexical_token_id != processor.lexical_token_id:
        raise ValueError(
            f"<lexical> is token {processor.lexical_token_id} of the tokenizer and {model.config.lexical_token_id} of "
            f"the model. Use the tokenizer that belongs to {options.base_model}, with no other tokens added."
        )
    return model


def check_target_modules(model: T5WithFusion, options: TrainingOptions) -> None:
    """Raise ValueError unless LoRA can adapt each of `options.target_modules`. PEFT would only require one of them."""
    if options.target_modules is None:
        return
    adaptable = {
        name
        for name, module in model.named_modules()
        # `shared` is left out: T5 reads the embedding table under a different name, so an adapter there has no effect.
        # The fusion layer is left out: PEFT trains it as a whole, without LoRA.
        if isinstance(module, (nn.Linear, nn.Embedding))
        and module is not model.shared
        and not (options.train_fusion and ".fusion." in name)
    }
    unknown = [
        wanted for wanted in options.target_modules if not any(f".{name}".endswith(f".{wanted}") for name in adaptable)
    ]
    if unknown:
        raise ValueError(
            f"{options.base_model} has no module {', '.join(map(repr, unknown))} that LoRA can adapt; expected "
            f"any of {', '.join(sorted({name.rpartition('.')[2] for name in adaptable}))}."
        )


def count_weights(model: nn.Module) -> tuple[int, int]:
    """Return how many weights train, and how many there are."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)
