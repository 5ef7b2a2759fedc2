"""Make a trained LoRA adapter smaller: of a lower rank, in half precision, or both.

The checks read JSON files and the headers of weights only, so that the command refuses at once. The functions that need
torch import it when they are called.
"""

import json
import re
import shutil
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.folder_names import check_source
from ..common.replace_folder import check_replaceable, copy_others, recover, replace, workplace
from ..common.run_files import ADAPTER_CONFIG, ADAPTER_SAFETENSORS, DIGEST, RECORD, SHRUNK, RunFiles, weights_digest
from ..common.weight_shapes import shapes_in
from ..common.writing import writing
from .options import DTYPES
from .output_folder import is_written

if TYPE_CHECKING:
    from torch import Tensor

KEPT = ("README.md", "loss.svg", "run.yaml")  # files about the training, which hold for the smaller adapter too
LORA_WEIGHT = re.compile(r"\.lora_[AB]\.weight$")
FUSION, SCALE = ".fusion.", ".scale."  # parts of the names of the fusion layer's weights, and of its scales
# Fields of LoRA's config with which A and B alone do not say what the adapter adds, or may not have any shape.
SPECIAL = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "monteclora_config",
    "target_parameters", "trainable_token_indices", "use_bdlora", "use_dora", "use_qalora",
)  # fmt: skip
MOST_LOST = 0.01  # the part of a tensor, by its norm, that rounding may change; ordinary weights lose less than 0.003


@dataclass(frozen=True)
class Shrunk:
    """What `shrink_adapter` did. As a text, it is a line such as "4.8 MB -> 0.7 MB: rank 32 -> 8, float16"."""

    rank_before: int
    rank: int
    dtype: str | None  # of the saved weights; None if it stayed as it was
    bytes_before: int  # of adapter_model.safetensors
    bytes: int

    def __str__(self) -> str:
        rank = f"rank {self.rank_before}" + (f" -> {self.rank}" if self.rank != self.rank_before else "")
        changes = ", ".join(filter(None, (rank, self.dtype)))
        return f"{self.bytes_before / 1e6:.1f} MB -> {self.bytes / 1e6:.1f} MB: {changes}"


def shrink_adapter(
    run: str | Path, output: str | Path, rank: int | None = None, dtype: str | None = None, overwrite: bool = False
) -> Shrunk:
    """Write a run folder whose LoRA adapter is smaller. It is written whole or not at all.

    Every layer gets the best approximation of a lower rank (by singular values). The fusion layer is kept whole; only
    its dtype may change. The scales of vectors stay float32. The saved dtype does not decide the dtype of computation:
    weights are cast to the dtype of the model that they are loaded into.

    The new folder has the processor of `run` and its training.json, which says under "shrunk" what was done. It has
    neither evaluation.json nor checkpoints, because these describe the larger adapter.

    Args:
        run: A run folder that `t5fusion train` wrote, with a LoRA adapter. It stays as it is.
        output: The folder to write. Without `overwrite`, it must be empty or not exist.
        rank: The new rank, lower than the rank of every layer; None to keep the rank.
        dtype: "float16" or "bfloat16", the dtype of the saved weights of LoRA and of the fusion layer; None to keep it.
        overwrite: Replace what an earlier call wrote in `output`. The user's own files stay.

    Returns:
        What was done.

    Raises:
        ValueError: Neither `rank` nor `dtype` is given, or one cannot be used; `run` holds no plain LoRA adapter, or a
            damaged file; `dtype` cannot hold the weights; or `output` holds something that must not be replaced.
        OSError: There is no such run folder; its base model cannot be loaded; or `output` cannot be written.
    """
    files, output = RunFiles(run), Path(output).resolve()
    rank_before = check_shrinkable(files, output, rank, dtype, overwrite)
    with workplace(output) as folder, writing(output):
        new = folder / output.name
        new.mkdir()
        _write_adapter(files, new, rank, dtype)
        sizes = [(place / ADAPTER_SAFETENSORS).stat().st_size for place in (files.path, new)]
        shrunk = Shrunk(rank_before, rank or rank_before, dtype, *sizes)
        record = files.record | {SHRUNK: asdict(shrunk), DIGEST: weights_digest(new)}
        (new / RECORD).write_text(json.dumps(record, indent=1) + "\n")
        for name in KEPT:
            if (files.path / name).exists():
                shutil.copyfile(files.path / name, new / name)
        copy_others(output, new, is_written)
        replace(output, new)
    return shrunk


def check_shrinkable(files: RunFiles, output: Path, rank: int | None, dtype: str | None, overwrite: bool) -> int:
    """Return the highest rank of a layer, after checking what `shrink_adapter` gets. torch is not imported.

    Raises:
        ValueError, OSError: See `shrink_adapter`.
    """
    if rank is None and dtype is None:
        raise ValueError(
            "nothing to do: neither a rank nor a dtype was given. Pass --rank 8, --dtype float16, or both."
        )
    if dtype not in (None, *DTYPES):
        raise ValueError(f"the dtype is {dtype!r}; expected one of {', '.join(DTYPES)}.")
    check_source(str(files), is_base_model=False)
    recover(output)
    check_replaceable(output, "shrink", "a smaller adapter", RunFiles(output).is_shrunk, overwrite)
    _check_plain_lora(files)
    ranks = [shape[0] for name, shape in _shapes(files).items() if name.endswith(".lora_A.weight")]
    if rank is not None and not 1 <= rank < min(ranks):
        raise ValueError(
            f"the rank is {rank}, and the adapter in {files} has rank {min(ranks)}; expected a lower one, from 1."
        )
    return max(ranks)


def _check_plain_lora(files: RunFiles) -> None:
    """Raise ValueError unless a folder is a run folder whose adapter is a LoRA without extensions."""
    config = files.adapter_config
    if not files.record or files.has_config:
        what = "all weights" if files.has_config and not config else f"no {RECORD}" if not files.record else "a bundle"
        raise ValueError(
            f"{files} holds {what}; expected a run folder that `t5fusion train` wrote, with a LoRA adapter."
        )
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{files} holds an adapter of type {config.get('peft_type')}; only LoRA can be shrunk.")
    special = [name for name in SPECIAL if config.get(name)]
    special += [name for name in _shapes(files) if not LORA_WEIGHT.search(name) and FUSION not in name]
    if special:
        raise _not_plain(files, special[0])


def _not_plain(files: RunFiles, cause: str) -> ValueError:
    return ValueError(f"the adapter in {files} is not a plain LoRA ({cause}); only plain ones can be shrunk.")


def _shapes(files: RunFiles) -> dict[str, list[int]]:
    """Return the shape of each weight of an adapter by its name; raise ValueError if there is none."""
    shapes = shapes_in(files.path / ADAPTER_SAFETENSORS)
    if not any(map(LORA_WEIGHT.search, shapes)):
        raise ValueError(f"{files} holds no weights of LoRA in {ADAPTER_SAFETENSORS}. Copy or save it again.")
    return shapes


def _write_adapter(files: RunFiles, new: Path, rank: int | None, dtype: str | None) -> None:
    """Write the smaller adapter of a run folder, its config, and the processor into the folder `new`."""
    from safetensors.torch import load_file, save_file  # These are slow to import, and the checks do not need them.

    from ..common.run_folder import RunFolder, load_processor
    from ..saving_t5fusion import KEEPS_BASE, apply_umask

    RunFolder(files.path).check()
    weights, config = load_file(files.path / ADAPTER_SAFETENSORS), dict(files.adapter_config)
    if rank is not None:
        if config.get("init_lora_weights", True) not in KEEPS_BASE:  # Loading changes the base weights, by the rank.
            raise _not_plain(files, "init_lora_weights")
        weights |= _of_lower_rank(files.path, weights, rank)
        # The new weights include the factor alpha / r (with `use_rslora`, alpha / sqrt(r)).
        config |= {"r": rank, "lora_alpha": rank, "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False}
    if dtype is not None:
        weights = {name: tensor if SCALE in name else _cast(name, tensor, dtype) for name, tensor in weights.items()}
    save_file(weights, new / ADAPTER_SAFETENSORS, metadata={"format": "pt"})
    (new / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))
    load_processor(files.path).save_pretrained(new)
    apply_umask(new)


def _of_lower_rank(run: Path, weights: "dict[str, Tensor]", rank: int) -> "dict[str, Tensor]":
    """Return A, (rank, inputs), and B, (outputs, rank), of each layer by their names, in the dtypes of `weights`."""
    from peft import convert_to_lora  # It is slow to import, and the checks do not need it.

    from ..common.run_folder import load_trained

    model, _ = load_trained(run)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Converting a PEFT adapter to LoRA that is already")
        _, converted = convert_to_lora(model, rank)
    # PEFT's config and its other weights are not used: it drops most fields, and the names of nested layers.
    return {name: converted[name].to(weights[name].dtype) for name in weights if LORA_WEIGHT.search(name)}


def _cast(name: str, tensor: "Tensor", dtype: str) -> "Tensor":
    """Return a tensor in a different dtype; raise ValueError if its numbers are too large or too small for it."""
    import torch  # It is slow to import, and the checks do not need it.

    cast, exact = tensor.to(getattr(torch, dtype)), tensor.double()
    if not (cast.double() - exact).norm() <= MOST_LOST * exact.norm():  # An overflow gives infinity here.
        limits = torch.finfo(cast.dtype)
        raise ValueError(
            f"{dtype} cannot hold {name}, whose largest number is {tensor.abs().max():.2g}: it holds numbers between "
            f"{limits.tiny:.2g} and {limits.max:.2g}. Choose a different dtype, or none."
        )
    return cast
