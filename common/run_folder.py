"""Load the model and the processor of a run folder or a bundle."""

import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from ..modeling_t5fusion import T5WithFusion
from ..naming_t5fusion import PROJECTION_WEIGHT
from ..processing_t5fusion import T5FusionProcessor
from .base_models import base_error, base_source
from .limits import MAX_SOURCE, MAX_TARGET
from .run_files import PROCESSOR_CONFIG, RECORD, RunFiles, digest_of, find_folder, read_json
from .saved_files import check_contents, check_numbers, one_sentence_errors, read_weights, weights_in

# Files that a download leaves out, because no model is loaded from them.
NOT_LOADED = ["*/*", "*.py", "*.md", "*.onnx*", "onnx_*", "reference.safetensors", "training_args.bin"]


class RunFolder(RunFiles):
    """A run folder, a checkpoint of the Trainer, or a bundle: its JSON files, its processor, and its weights."""

    def check(self) -> None:
        """Read every config and all weights; ValueError if one is damaged, or if training.json is of other weights."""
        check_contents(self.path)
        self.check_record()

    @cached_property
    def processor(self) -> T5FusionProcessor | None:
        """The processor that was saved, or None."""
        folder = self.folder_with(PROCESSOR_CONFIG)
        return None if folder is None else load_processor(folder)

    @property
    def load_options(self) -> dict[str, Any]:
        """The keywords of `T5WithFusion` that load the adapter's base model as it was in training."""
        options: dict[str, Any] = {}
        if self.folder_with(RECORD):
            options["dtype"] = torch.float32  # `train` loads base models in fp32.
        lexical_dim = self.lexical_dim
        if lexical_dim is not None:
            options["lexical_dim"] = lexical_dim
        if self.has_adapter:
            # Here the commit is left out, because `export` passes it by itself: the user may name another one. There is
            # no such choice in `load_trained`.
            options |= {name: value for name, value in self.adapter_base.keywords.items() if name != "revision"}
        return options

    @property
    def lexical_dim(self) -> int | None:
        """The width of the vectors, from the processor or else from the adapter's weights; None if neither exists."""
        if self.processor is not None:
            return self.processor.lexical_dim
        adapters = [file for file in weights_in(self.path) if file.name.startswith("adapter_model")]
        weights = (weight for file in adapters for weight in read_weights(file))
        return next((tensor.shape[-1] for name, tensor in weights if name.endswith(PROJECTION_WEIGHT)), None)


def find_trained(name: str, revision: str | None = None) -> Path:
    """Return the folder of this name, or the cached folder of a Hub repository, with the files that a model needs.

    Args:
        name: A folder, or the id of a repository.
        revision: Branch, tag or commit of the repository.

    Raises:
        ValueError: A revision is given for a folder.
        OSError: There is neither such a folder nor such a repository.
    """
    return find_folder(name, revision, ignore_patterns=NOT_LOADED)


def load_trained(folder: str | Path) -> tuple[torch.nn.Module, T5FusionProcessor]:
    """Load the model, in evaluation mode and fp32, and the processor of a run folder or a bundle.

    Args:
        folder: The folder, or the id of a repository on the Hub.

    Raises:
        OSError: There is neither such a folder nor such a repository within reach; it holds no adapter and no model, or
            no processor; or its base model cannot be loaded.
        ValueError: A file is damaged or belongs to a different kind of model, or `check_numbers` refuses a weight.
    """
    folder = find_trained(str(folder))
    run = RunFolder(folder)
    if not run.has_adapter and not run.has_config:
        raise OSError(f"{folder} holds neither an adapter nor a model. Name a folder that `t5fusion train` wrote.")
    if not (folder / PROCESSOR_CONFIG).exists():
        raise OSError(
            f"{folder} holds no processor_config.json. Save one there: T5FusionProcessor(tokenizer, template=...)"
            ".save_pretrained(folder)."
        )
    run.check()
    processor = load_processor(folder)
    if run.has_config:  # The folder holds all weights, or is a bundle.
        with one_sentence_errors(f"the model in {folder}"):
            model: torch.nn.Module = T5WithFusion(folder, dtype=torch.float32)
    else:
        base = run.adapter_base
        options = {"lexical_dim": processor.lexical_dim, "dtype": torch.float32} | base.keywords
        try:
            with one_sentence_errors(f"the base model {base.base_model}"):
                model = T5WithFusion(base_source(base.base_model), **options)
        except OSError as error:
            raise base_error(str(base.base_model), error) from error
        model = load_adapter(model, folder)
    check_numbers(model.state_dict().items(), str(folder))
    return align(model).eval(), processor


def load_processor(folder: Path) -> T5FusionProcessor:
    """Load the processor that was saved in a folder.

    Raises:
        ValueError: Its files are damaged, or belong to a different kind of processor.
    """
    config = read_json(folder / PROCESSOR_CONFIG)
    class_name = config.get("processor_class", T5FusionProcessor.__name__)
    if class_name != T5FusionProcessor.__name__:
        raise ValueError(f"the processor in {folder} is a {class_name}; expected a T5FusionProcessor. Save one there.")
    with one_sentence_errors(f"the processor in {folder}"):
        return T5FusionProcessor.from_pretrained(folder)


def load_adapter(fused_model: T5WithFusion, folder: Path, remedy: str = "") -> PeftModel:
    """Load the adapter in a folder on top of a fused model.

    Args:
        fused_model: The untuned model that the adapter was trained on.
        folder: A run folder, or what `PeftModel.save_pretrained` wrote.
        remedy: A sentence that ends the error and says what the user can do; none by default.

    Raises:
        ValueError: The adapter's weights do not fit, or some are missing.
    """
    with one_sentence_errors(f"the adapter in {folder}"), warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            return PeftModel.from_pretrained(fused_model, str(folder))
        except (RuntimeError, KeyError, UserWarning) as error:
            cause = str(error).strip().splitlines()[-1].strip()
            sentences = (
                f"the adapter in {folder} does not fit {fused_model.config.backbone or 'its base model'} ({cause}).",
                "It was trained on a different base model, or its files are damaged.",
                remedy,
            )
            raise ValueError(" ".join(filter(None, sentences))) from error


def trained_limits(folder: Path) -> tuple[int, int]:
    """Return the limits of training for an input and a target, in tokens; the defaults if none are recorded.

    Raises:
        ValueError: training.json is damaged.
    """
    options = RunFolder(folder).record.get("options", {})
    return options.get("max_source", MAX_SOURCE), options.get("max_target", MAX_TARGET)


def trained_digest(folder: Path) -> str:
    """Return 12 hexadecimal digits of a digest of a folder's weights and recipe, which decide its model's outputs."""
    weights = [file for file in weights_in(folder) if file.suffix == ".bin"]
    return digest_of([*folder.glob("*.safetensors"), *weights, folder / PROCESSOR_CONFIG])


def align(model: nn.Module) -> nn.Module:
    """Copy each weight to memory that torch aligns, in place, and return the model.

    Weights read from safetensors keep the alignment that they have in the file, and on a CPU the last bit of a product
    depends on it. With torch's alignment, a reloaded model gives exactly the outputs of the trained one.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model
