"""The processor of a bundle: the processor that training saved, or the tokenizer with the user's recipe."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from ..common.run_files import PROCESSOR_CONFIG
from ..common.run_folder import RunFolder
from ..common.saved_files import one_sentence_errors
from ..configuration_t5fusion import T5FusionConfig
from ..kinds_t5fusion import list_kinds
from ..modeling_t5fusion import T5WithFusion
from ..processing_t5fusion import T5FusionProcessor
from .base_choice import BaseModel

SAMPLE = "app_config"  # a text to try the encoder with


def choose_processor(
    run: RunFolder,
    trained_on: BaseModel,
    fused_model: T5WithFusion,
    recipe: dict[str, Any],
    say: Callable[[str], None],
) -> T5FusionProcessor:
    """Return the processor that readers get.

    Args:
        run: The run folder that is exported. It may hold a processor or a tokenizer.
        trained_on: The base model of the training, whose tokenizer is used if the run folder holds none.
        fused_model: The model, which says how wide the vectors are.
        recipe: The user's fields of `T5FusionProcessor`, used if no processor was saved.
        say: Function that gets a line about each assumption.

    Raises:
        ValueError: The user gives a recipe, but the run folder holds a processor; readers could not make the vectors;
            or the tokenizer and the model use different ids for the placeholder.
        OSError: The tokenizer cannot be loaded.
    """
    processor = run.processor
    if processor is None:
        processor = new_processor(run, trained_on, fused_model.config, recipe, say)
    elif recipe:
        folder = run.folder_with(PROCESSOR_CONFIG)
        options = ", ".join("--" + name.replace("lexical_encoder", "encoder").replace("_", "-") for name in recipe)
        raise ValueError(f"{folder} holds a processor with a recipe of its own. Leave out {options}.")
    for name in ("is_local", "local_files_only"):  # They say how it was loaded here, and would differ by machine.
        processor.tokenizer.init_kwargs.pop(name, None)
    check_encoder(processor, say)
    has_kinds = bool(processor.vectors or fused_model.config.vectors)
    if has_kinds and processor.kinds != fused_model.config.kinds:
        raise ValueError(
            f"the processor has the vectors {list_kinds(processor.kinds)}, and the model "
            f"{list_kinds(fused_model.config.kinds)}. Save the processor that was used in training."
        )
    token_id = fused_model.config.lexical_token_id
    if token_id != processor.lexical_token_id:
        raise ValueError(
            f"<lexical> is token {processor.lexical_token_id} of the tokenizer and {token_id} of the model on "
            f"{trained_on}. Save the tokenizer that was used in training, without other added tokens."
        )
    return processor


def new_processor(
    run: RunFolder, trained_on: BaseModel, config: T5FusionConfig, recipe: dict[str, Any], say: Callable[[str], None]
) -> T5FusionProcessor:
    """Return a processor with the user's recipe, and with the tokenizer of the run folder or of the base model.

    Raises:
        OSError: The tokenizer cannot be loaded.
    """
    folder = run.folder_with("tokenizer_config.json")
    name, revision = (trained_on.name, trained_on.revision) if folder is None else (str(folder), None)
    if folder is None:
        say(f"{run} holds no tokenizer. Used instead: the tokenizer of {trained_on}.")
    with one_sentence_errors(f"the tokenizer of {name}"):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    vector_fields: dict[str, Any] = {"lexical_dim": config.lexical_dim, "vectors": config.vectors}
    processor = T5FusionProcessor(tokenizer, **vector_fields, **complete_recipe(recipe))
    say(
        f"{run} does not say how its vectors were made. Assumed: {recipe_in_words(processor)}. If that is wrong, pass "
        "--encoder, --template, --lexical-source."
    )
    return processor


def complete_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the user's recipe, with `lexical_source` and `lexical_encoder` filled in.

    The source is "text" with an encoder and "given" without one. The encoder "none" counts as none.
    """
    encoder = recipe.get("lexical_encoder")
    encoder = None if encoder == "none" else encoder
    source = "text" if encoder else "given"
    return {"lexical_source": source} | recipe | {"lexical_encoder": encoder}


def recipe_in_words(processor: T5FusionProcessor) -> str:
    """Return a processor's recipe in words."""
    encoder = processor.lexical_encoder
    sources = {
        "text": f"made of the text itself by {encoder}",
        "given": "given with each call" + (f" or made of its `lexical_texts` by {encoder}" if encoder else ""),
        "none": "not used",
    }
    widths = " and ".join(str(kind.dim) for kind in processor.kinds.values())
    vectors = f"vectors of {widths} numbers, {sources[processor.lexical_source]}"
    return f"{vectors}; prompt {processor.template!r}"


def check_encoder(processor: T5FusionProcessor, say: Callable[[str], None]) -> None:
    """Check the recipe's encoder by encoding a text, and say so if the encoder cannot be loaded here.

    Raises:
        ValueError: The encoder is a folder of this machine; its vectors have a different width than the model's; or the
            vectors are to be made of the text, and no encoder is named.
    """
    encoder = processor.lexical_encoder
    if encoder is None:
        if processor.lexical_source == "text":
            raise ValueError(
                "the vectors are to be made of the text (`lexical_source` is 'text'), and no encoder is named. Name it "
                "with --encoder ID, or in processor_config.json; or set `lexical_source` to 'given' there."
            )
        return
    if Path(encoder).is_absolute() or Path(encoder).is_dir():
        raise ValueError(
            f"the lexical encoder is a folder of this machine, {encoder}, which readers do not have. Put its Hub id "
            "into `lexical_encoder` of processor_config.json."
        )
    try:
        processor.encode([SAMPLE])
    except (ImportError, OSError) as error:
        wanted = f"vectors of {processor.lexical_dim} numbers"
        say(f"Not checked: whether {encoder} makes {wanted} ({error})")
