"""Read the files of a saved model, and refuse damaged ones in a sentence."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open

CONFIGS = ("adapter_config.json", "config.json", "processor_config.json", "tokenizer_config.json")
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")  # peft reads the first of these that is there
MODEL_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")  # so does transformers


@contextmanager
def told(what: str) -> Iterator[None]:
    """Makes one sentence of what libraries raise over files that are damaged, or of another kind.

    Errors that are sentences already, or have another cause, pass as they are.
    """
    try:
        yield
    except (ValueError, OSError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of many kinds: of tokenizers and safetensors, or a TypeError over a field
        cause = (str(error).strip() or "no message").splitlines()[0].rstrip(".")
        raise ValueError(
            f"{what} cannot be loaded ({type(error).__name__}: {cause}). A file is damaged, or of another kind of "
            "model. Save it again."
        ) from error


def check_files(folder: Path) -> None:
    """Reads every config and all weights in a folder.

    Raises:
        ValueError: a config is no JSON object; or a weights file cannot be read, or holds what `check_numbers` refuses.
    """
    for name in CONFIGS:
        if (folder / name).exists():
            read_json(folder / name)
    if (folder / "model.safetensors.index.json").exists():
        read_json(folder / "model.safetensors.index.json")
    for file in weights_in(folder):
        check_numbers(read_weights(file), str(file), may_be_zero="-of-" in file.name)


def weights_in(folder: Path) -> list[Path]:
    """The files of weights that peft and transformers read in a folder."""
    adapter = [folder / name for name in ADAPTER_WEIGHTS if (folder / name).exists()][:1]
    models = [sorted(folder.glob(pattern)) for pattern in MODEL_WEIGHTS]
    return adapter + next((files for files in models if files), [])


def read_weights(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and tensor of each weight in a file, one at a time; ValueError where the file cannot be read."""
    try:
        if file.suffix == ".bin":
            yield from torch.load(file, map_location="cpu", weights_only=True, mmap=True).items()
        else:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118, no dict
                    yield name, opened.get_tensor(name)
    except GeneratorExit:
        raise
    except Exception as error:  # of many kinds: of safetensors, pickle, zipfile, torch
        cause = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(
            f"the weights in {file} cannot be read ({cause}). The file is damaged, or holds something else: copy or "
            "save it again."
        ) from error


def check_numbers(tensors: Iterable[tuple[str, torch.Tensor]], where: str, may_be_zero: bool = False) -> None:
    """Refuses weights with which a model writes nonsense.

    Args:
        tensors: name and tensor of each weight.
        where: the file or folder, for the message.
        may_be_zero: do not refuse weights that are zero, all of them. (Of a new LoRA, all `lora_B` are.)

    Raises:
        ValueError: a tensor holds NaN or an infinity; it names the first one. Or all tensors are zero.
    """
    count, all_zero = 0, not may_be_zero
    for name, tensor in tensors:
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.is_meta or not tensor.is_floating_point():
            all_zero = False  # quantised, or not here: of classes and types that know no isfinite
            continue
        values = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # float8 knows no isfinite
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


def read_json(file: Path) -> dict:
    """The object in a file of JSON; ValueError where it holds none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # of the JSON, or of its encoding
        raise ValueError(f"{file} is damaged: it is no JSON ({error}). Copy or save it again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds a {type(found).__name__}; expected an object, {{...}}. Save it again.")
    return found
