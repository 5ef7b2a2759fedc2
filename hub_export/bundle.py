"""Write a bundle: the folder that goes to the Hub, with everything that a reader needs to load the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from ..common.replace_folder import check_replaceable, copy_others, replace, workplace
from ..common.run_files import EVALUATION
from ..common.writing import writing
from ..saving_t5fusion import apply_umask
from .card import CARD, make_card
from .evaluation import evaluation_still_holds
from .kinds import parse_kind
from .manifest import MANIFEST, bundle_files, write_manifest
from .model_files import write_model
from .onnx_graphs import check_installed, write_graphs
from .plan import make_plan
from .reference import write_reference

Format = Literal["safetensors", "onnx"]


def export(
    source: str | Path,
    bundle: str | Path,
    kind: str = "adapter",
    base_model: str | None = None,
    recipe: dict[str, Any] | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
    format: Format = "safetensors",
) -> Path:
    """Write a bundle. It is written whole or not at all, and the same inputs give the same bytes.

    Args:
        source: A run folder: one that `t5fusion train` wrote, a checkpoint of the Trainer, or a folder that holds what
            `peft_model.save_pretrained` and `tokenizer.save_pretrained` wrote. For "standalone" it may hold all weights
            instead of an adapter. For "fused", the id or the folder of a T5.
        bundle: The folder to write. Without `overwrite`, it must be empty or not exist.
        kind: "adapter": code, config, adapter and tokenizer, while readers load the base weights from the base model;
            "standalone": the base weights too; "merged": LoRA merged into the weights, so that readers need no PEFT;
            "fused": the untuned fused model, on which many adapters can be trained ("base" is its earlier name).
        base_model: `ID` or `ID@REVISION` of the T5 that readers get. Default: the one that was trained on.
        recipe: Fields of `T5FusionProcessor`, if `source` holds no processor. Without an encoder (`lexical_encoder`),
            the vectors are given with each call.
        overwrite: Replace the bundle that is there. The user's own words in its card stay, and so do other files.
        say: Function that gets a line about each assumption.
        format: "onnx" adds ONNX graphs to the bundle, with the adapter merged (see `onnx_graphs`).

    Returns:
        The path of the bundle.

    Raises:
        ValueError: `source` holds no model of this kind; readers would not get the model that was trained; the folder
            is not empty; the encoder's vectors have a different width than the model's; or the adapter cannot be merged
            into ONNX graphs.
        OSError: A base model or a tokenizer cannot be loaded, or the bundle cannot be written.
        ImportError: The packages that write ONNX graphs are not installed.
    """
    bundle, kind = Path(bundle).resolve(), parse_kind(kind)
    if format not in get_args(Format):
        raise ValueError(f"`format` is {format!r}; expected one of {', '.join(get_args(Format))}.")
    if format == "onnx":
        check_installed("onnx", "onnxscript")
    existing = next(path for path in (bundle, *bundle.parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"{existing} is a file; expected a folder. Choose a different one.")
    with workplace(bundle) as folder:
        check_replaceable(bundle, "export", "a bundle", (bundle / MANIFEST).exists(), overwrite)
        previous_card = (bundle / CARD).read_text(encoding="utf-8") if (bundle / CARD).exists() else None
        plan = make_plan(str(source), kind, base_model, recipe or {}, say)
        with writing(bundle):
            new_bundle = folder / bundle.name
            new_bundle.mkdir()
            model = write_model(plan, new_bundle)
            plan.processor.save_pretrained(new_bundle)
            write_reference(new_bundle, model, plan.processor)
            if format == "onnx":
                write_graphs(new_bundle, model)
            # The card reports the run folder's evaluation or, if it has none, that of the replaced bundle.
            keeps_evaluation = not plan.run.evaluation and evaluation_still_holds(bundle, new_bundle, say)
            evaluated = bundle if keeps_evaluation else None
            card = make_card(new_bundle, plan.run, kind, previous=previous_card, evaluated=evaluated)
            (new_bundle / CARD).write_text(card, encoding="utf-8")
            write_manifest(new_bundle, kind)
            check_nothing_local(new_bundle, [Path.home(), plan.run.path.resolve(), bundle])
            apply_umask(new_bundle)
            # `push` does not send the user's own files.
            written = bundle_files(bundle) | (set() if keeps_evaluation else {EVALUATION})
            copy_others(bundle, new_bundle, written.__contains__)
            replace(bundle, new_bundle)
    return bundle


def check_nothing_local(bundle: Path, paths: list[Path]) -> None:
    """Check that neither a config nor the card names a path of the author's machine.

    Raises:
        ValueError: A file names one of `paths`.
    """
    for file in bundle.iterdir():
        if file.suffix in (".json", ".md") and file.name != "tokenizer.json":
            text = file.read_text(encoding="utf-8")
            named = [str(path) for path in paths if path != Path(path.anchor) and str(path) in text]
            if named:
                raise ValueError(
                    f"{file.name} of the bundle would name {named[0]}, a path of this machine. Take it out of the file "
                    "that it comes from: the card of the replaced bundle, or a config of what is exported."
                )
