"""Read the files of a saved model, and refuse damaged ones in one sentence."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open

from ..naming_t5fusion import first_line
from .errors import cannot_be_loaded, unreadable_weights
from .run_files import ADAPTER_CONFIG, ADAPTER_SAFETENSORS, CONFIG, PROCESSOR_CONFIG, read_json

CONFIGS = (ADAPTER_CONFIG, CONFIG, PROCESSOR_CONFIG, "tokenizer_config.json", "model.safetensors.index.json")
# PEFT reads the first of these files that exists, and transformers the first pattern that matches a file.
ADAPTER_WEIGHTS = (ADAPTER_SAFETENSORS, "adapter_model.bin")
MODEL_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


@contextmanager
def one_sentence_errors(what: str) -> Iterator[None]:
    """Turn an error that a library raises for damaged or foreign files into a ValueError of one sentence.

    ValueError, OSError, ImportError and MemoryError pass unchanged: their messages are clear, or the files are not the
    cause.

    Args:
        what: The thing to load, as the subject of the sentence: "the adapter in runs/files".
    """
    try:
        yield
    except (ValueError, OSError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        # Tokenizers, safetensors and PEFT raise types of their own, and a wrong field may give any type.
        raise cannot_be_loaded(what, error) from error


def check_contents(folder: Path) -> None:
    """Read every config and all weights in a folder.

    Raises:
        ValueError: A config is not a JSON object, a weights file cannot be read, or `check_numbers` refuses a weight.
    """
    for name in CONFIGS:
        if (folder / name).exists():
            read_json(folder / name)
    for file in weights_in(folder):
        check_numbers(read_weights(file), str(file), may_be_zero="-of-" in file.name)


def weights_in(folder: Path) -> list[Path]:
    """Return the weights files that PEFT and transformers read in a folder."""
    adapter = [folder / name for name in ADAPTER_WEIGHTS if (folder / name).exists()][:1]
    models = [sorted(folder.glob(pattern)) for pattern in MODEL_WEIGHTS]
    return adapter + next((files for files in models if files), [])


def read_weights(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the name and the tensor of each weight in a file, one at a time.

    Raises:
        ValueError: The file cannot be read.
    """
    try:
        if file.suffix == ".bin":
            yield from torch.load(file, map_location="cpu", weights_only=True, mmap=True).items()
        else:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118, because it is not a dict
                    yield name, opened.get_tensor(name)
    except GeneratorExit:
        raise
    except Exception as error:  # safetensors, pickle, zipfile and torch each raise types of their own.
        raise unreadable_weights(file, first_line(error)) from error


def check_numbers(tensors: Iterable[tuple[str, torch.Tensor]], where: str, may_be_zero: bool = False) -> None:
    """Refuse weights that are NaN, infinite or all zero, because the model would generate nonsense.

    Args:
        tensors: Name and tensor of each weight, of any shape and dtype. Only floats are checked.
        where: The file or folder, for the message.
        may_be_zero: Accept weights that are all zero. (One shard of a new LoRA may hold only `lora_B`.)

    Raises:
        ValueError: A tensor holds NaN or an infinity (the message names the first one), or all tensors are zero.
    """
    count, all_zero = 0, not may_be_zero
    for name, tensor in tensors:
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.is_meta or not tensor.is_floating_point():
            all_zero = False  # Quantised or offloaded weights cannot be checked: `isfinite` does not know their types.
            continue
        values = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # `isfinite` does not know float8.
        wrong = values.numel() - int(torch.isfinite(values).sum())
        if wrong:
            raise ValueError(
                f"{wrong} of the {values.numel()} numbers in {name} of {where} are NaN or infinite: training has "
                "failed. Train again, with a lower learning rate or in fp32, or take an earlier checkpoint."
            )
        all_zero = all_zero and not values.any()
        count += 1
    if all_zero and count:
        raise ValueError(
            f"all {count} tensors in {where} are zero: nothing was trained, or the weights were lost when they were "
            "saved. Train or save again."
        )
