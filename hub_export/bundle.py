"""Write a bundle: the folder that goes to the Hub, with all that a reader needs to load the model on any machine."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from peft import PeftModel
from peft.utils import load_peft_weights
from safetensors.torch import save_file
from transformers import AutoTokenizer

from ..common.permissions import apply_umask
from ..common.remote_code import write_code
from ..common.replace_folder import replace, workplace
from ..common.run_folder import RECORD, load_adapter, load_processor
from ..common.saved_files import check_files, read_json, read_weights, told, weights_in
from ..finetune.evaluation import EVALUATION
from ..loading_t5fusion import base_in
from ..modeling_t5fusion import T5WithFusion
from ..naming_t5fusion import UNPUSHED_BASE
from ..processing_t5fusion import T5FusionProcessor
from .base_choice import Backbone, check_same, choose
from .card import CARD, Kind, make_card, with_evaluation
from .manifest import (
    MANIFEST,
    as_json,
    file_digest,
    is_weights,
    json_digest,
    read_manifest,
    write_json,
    write_manifest,
    write_whole,
)
from .onnx_graphs import need, write_graphs
from .reference import REFERENCE, TEXTS, one_thread, write_reference

Format = Literal["safetensors", "onnx"]
Say = Callable[[str], None]
PROJECTION = "fusion.projection.weight"


def export(
    source: str | Path,
    bundle: str | Path,
    kind: Kind = "adapter",
    backbone: str | None = None,
    recipe: dict[str, Any] | None = None,
    overwrite: bool = False,
    say: Say = lambda line: None,
    format: Format = "safetensors",
) -> Path:
    """Writes a bundle, whole or not at all, and the same bytes for the same inputs.

    Args:
        source: what `peft_model.save_pretrained` and `tokenizer.save_pretrained` wrote, or `t5fusion train`, or a
            checkpoint of the Trainer; a folder of all weights for "standalone"; a T5's id or folder for "base".
        bundle: the folder to write; it must not exist, or be empty.
        kind: "adapter": code, config, adapter and tokenizer, while the base weights come from the backbone;
            "standalone": the base weights too; "merged": LoRA folded into them, so that no PEFT is needed; "base": the
            fused model, untuned, that many adapters can name.
        backbone: `ID` or `ID@REVISION` of the T5 that readers will get; by default the one that was trained on.
        recipe: fields of `T5FusionProcessor`, where `source` holds no processor that tells them. Without an encoder
            (`lexical_encoder`) the vectors are given with each call.
        overwrite: replace the bundle that is there; what its card says of the user's own stays, and so do other files.
        say: is told, a line each, what was taken for granted.
        format: "onnx": the bundle carries ONNX graphs as well, with the adapter folded in (see `onnx_export`).

    Raises:
        ValueError: the source is none of these, or readers would not get the model that was trained, or the folder is
            not empty; or the encoder's vectors are of another width than the model's; or the adapter is none that can
            be folded into ONNX graphs.
        OSError: a base or a tokenizer cannot be loaded.
        ImportError: what writes ONNX graphs is not installed.
    """
    bundle = Path(bundle).resolve()
    if kind not in get_args(Kind):
        raise ValueError(f"`kind` is {kind!r}; expected one of {', '.join(get_args(Kind))}.")
    if format not in get_args(Format):
        raise ValueError(f"`format` is {format!r}; expected one of {', '.join(get_args(Format))}.")
    if format == "onnx":
        need("onnx", "onnxscript")
    with workplace(bundle) as folder:
        previous = _check_target(bundle, overwrite)
        new = folder / bundle.name
        new.mkdir()
        if kind == "base":
            model = write_base(Backbone.parse(str(source)), new, recipe, say)
        else:
            model = write_trained(Path(source), new, kind, backbone, recipe, say)
        if format == "onnx":
            with one_thread():
                write_graphs(new, model, new / REFERENCE)
        evaluated = bundle if still_evaluated(bundle, new, Path(source), say) else None
        card = make_card(new, Path(source), kind, previous=previous, evaluated=evaluated)
        (new / CARD).write_text(card, encoding="utf-8")
        write_manifest(new, kind)
        check_nothing_local(new, [Path.home(), Path(source).resolve(), bundle])
        apply_umask(new)
        if bundle.exists():
            keep_others(bundle, new, but=[] if evaluated else [EVALUATION])
        replace(bundle, new)
    return bundle


def still_evaluated(bundle: Path, new: Path, source: Path, say: Say) -> bool:
    """Whether the evaluation that lies beside the bundle which is replaced is the one for the card of the new one.

    So it is where the weights are the same, and training brought no evaluation of its own.
    """
    if not (bundle / EVALUATION).exists() or (source / EVALUATION).exists():
        return False
    try:
        before = {name: value for name, value in read_manifest(bundle)["files"].items() if is_weights(name)}
    except ValueError:  # damaged: there is no way to know of what
        before = {}
    same = before == {file.name: file_digest(file) for file in new.iterdir() if is_weights(file.name)}
    if not same:
        say(f"{bundle / EVALUATION} was of the weights that are replaced, and is removed. Evaluate the new ones.")
    return same


def keep_evaluation(bundle: Path) -> None:
    """Fills the card of a bundle in with the evaluation.json beside it, so that `push` sends it.

    Raises:
        ValueError: the card has a broken marker or unreadable metadata; the bundle is as it was.
    """
    manifest = read_manifest(bundle)
    write_whole(bundle / CARD, with_evaluation(bundle, manifest["kind"]))
    manifest["files"][CARD] = file_digest(bundle / CARD)
    write_whole(bundle / MANIFEST, as_json(manifest | {"digest": json_digest(manifest)}))


def keep_others(bundle: Path, new: Path, but: list[str]) -> None:
    """What the user put beside the files of the bundle that is replaced stays, but for these; none of it is pushed."""
    try:
        ours = {*read_manifest(bundle)["files"], MANIFEST}
    except ValueError:  # damaged: no telling
        ours = {MANIFEST}
    for item in bundle.iterdir():
        if item.name not in {*ours, *but} and not (new / item.name).exists():
            (shutil.copytree if item.is_dir() else shutil.copy2)(item, new / item.name)


def _check_target(bundle: Path, overwrite: bool) -> str | None:
    """The card of the bundle that will be replaced; ValueError if something else would be."""
    if not bundle.exists() or (bundle.is_dir() and not any(bundle.iterdir())):
        return None
    if not (bundle / MANIFEST).exists():
        raise ValueError(
            f"{bundle} holds what t5fusion export did not write, and is left alone. Choose another folder."
        )
    if not overwrite:
        raise ValueError(f"{bundle} holds a bundle already. Choose another folder, or give --overwrite.")
    return (bundle / CARD).read_text(encoding="utf-8") if (bundle / CARD).exists() else None


def write_base(backbone: Backbone, new: Path, recipe: dict | None, say: Say) -> torch.nn.Module:
    """The fused model on a plain T5, with its weights; returns it."""
    model = backbone.load()
    if backbone.is_folder:
        model.config.backbone = model.config.backbone_revision = None
    processor = find_processor(Path(backbone.name), backbone, recipe, model.config.lexical_dim, say)
    model.save_pretrained(new)
    processor.save_pretrained(new)
    write_reference(new, model, processor)
    return model


def write_trained(
    source: Path, new: Path, kind: Kind, backbone: str | None, recipe: dict | None, say: Say
) -> torch.nn.Module:
    """What was trained, in `source`: an adapter, or all weights; returns the model as readers will have it."""
    check_files(source)
    has_adapter = (source / "adapter_config.json").exists()
    if has_adapter:
        trained, published = choose(source, backbone, needed=kind == "adapter", say=say)
    elif not (source / "config.json").exists():
        raise ValueError(f"{source} holds neither an adapter nor a model. Name a folder that training has saved.")
    elif kind != "standalone":
        raise ValueError(f"{source} holds all weights and no adapter. Use --kind standalone.")
    else:
        trained, published = Backbone(str(source)), None
    options = trained_as(source)
    if kind == "adapter" and "subfolder" in options:
        raise ValueError(
            f"the adapter was trained on the subfolder {options['subfolder']} of {trained}, and readers of a bundle "
            "get a base from the root of its repository. Use --kind standalone or merged."
        )
    base = trained.load(**options)
    if published is not None and published != trained:
        check_same(base, published.load(**options), (trained, published))
    processor = find_processor(source, trained, recipe, base.config.lexical_dim, say)
    if kind == "merged" and getattr(base.config, "quantization_config", None) is not None:
        raise ValueError(
            f"{trained} is quantised: LoRA folded into it would be rounded away in part. Use --kind adapter, or "
            "standalone."
        )
    if base.config.lexical_token_id != processor.lexical_token_id:
        raise ValueError(
            f"<lexical> is token {processor.lexical_token_id} of the tokenizer and {base.config.lexical_token_id} of "
            f"the model on {trained}. Save the tokenizer that was trained with, with no other tokens added."
        )
    base.config.backbone = published.name if published else None
    base.config.backbone_revision = published.revision if published else None
    model = write_weights(base, source if has_adapter else None, new, kind)
    processor.save_pretrained(new)
    write_reference(new, model, processor)
    return model


def trained_as(source: Path) -> dict[str, Any]:
    """How to load the base: with vectors as wide as in training, and as `t5fusion train` does, in fp32."""
    options: dict[str, Any] = {}
    if find_beside(source, RECORD):
        options["dtype"] = torch.float32
    saved = find_beside(source, "processor_config.json")
    weights = next((file for file in weights_in(source) if file.name.startswith("adapter_model")), None)
    if saved:
        options["lexical_dim"] = load_processor(saved).lexical_dim
    elif weights is not None:
        shapes = [tensor.shape for name, tensor in read_weights(weights) if name.endswith(PROJECTION)]
        if shapes:
            options["lexical_dim"] = shapes[0][-1]
    if (source / "adapter_config.json").exists():  # and with what else was chosen when the model was built
        base = base_in(read_json(source / "adapter_config.json"))
        options |= {name: value for name, value in base.keywords.items() if name != "revision"}
    return options


def find_beside(source: Path, name: str) -> Path | None:
    """The folder that holds such a file: `source`, or those around it where it is a checkpoint of the Trainer."""
    folders = [source, *([source.parent, source.parent.parent] if source.name.startswith("checkpoint-") else [])]
    return next((folder for folder in folders if (folder / name).exists()), None)


def write_weights(base: T5WithFusion, source: Path | None, new: Path, kind: Kind) -> torch.nn.Module:
    """Code, config and weights; returns the model as readers will have it.

    Args:
        base: the fused model beneath the adapter, or all there is.
        source: where the adapter is; None for none.
    """
    if kind != "adapter":
        base.save_pretrained(new)
    if source is None:
        return base
    model = load_peft(base, source)
    if kind == "standalone":
        config = json.loads((new / "config.json").read_text(encoding="utf-8"))
        write_json(new / "config.json", config | {"adapter_beside": True})
    if kind == "merged":
        with warnings.catch_warnings():  # those of a FLAN-T5 never were
            warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
            merged = model.merge_and_unload()
        merged.save_pretrained(new)
        return merged
    if kind == "adapter":
        write_code(base, new)
    save_file(
        load_peft_weights(str(source), device="cpu"), new / "adapter_model.safetensors", metadata={"format": "pt"}
    )
    adapter_config = read_json(source / "adapter_config.json")
    adapter_config |= {"base_model_name_or_path": UNPUSHED_BASE, "revision": None}  # `push` names the repository
    if adapter_config.get("task_type") is None:  # then PEFT has named a class of this package, which readers lack
        adapter_config |= {"task_type": "SEQ_2_SEQ_LM", "auto_mapping": None}
    write_json(new / "adapter_config.json", adapter_config)
    return model


def load_peft(base: T5WithFusion, source: Path) -> PeftModel:
    """The adapter on its base; ValueError where its weights do not fit."""
    try:
        return load_adapter(base, source)
    except ValueError as error:
        hint = " Name the base that it was trained on with --backbone ID." if "does not fit" in str(error) else ""
        raise ValueError(f"{error}{hint}") from error


def find_processor(
    source: Path, trained: Backbone, recipe: dict | None, lexical_dim: int, say: Say
) -> T5FusionProcessor:
    """The processor that was saved; else the tokenizer that was, with the recipe that is given."""
    saved = find_beside(source, "processor_config.json")
    if saved is not None:
        if recipe:
            raise ValueError(f"{saved} holds a processor with a recipe of its own. Leave out {', '.join(recipe)}.")
        processor = load_processor(saved)
    else:
        found = find_beside(source, "tokenizer_config.json")
        if found is None:
            say(f"{source} holds no tokenizer: that of {trained} is taken.")
        place = (trained.name, trained.revision) if found is None else (found, None)
        with told(f"the tokenizer of {place[0]}"):
            tokenizer = AutoTokenizer.from_pretrained(place[0], revision=place[1])
        recipe = complete_recipe(recipe or {})
        processor = T5FusionProcessor(tokenizer, lexical_dim=lexical_dim, **recipe)
        encoder, made = processor.lexical_encoder, {"text": "made of the text itself", "none": "not used"}
        made["given"] = "given with each call" + (f" or made of its `lexical_texts` by {encoder}" if encoder else "")
        by = f" by {encoder}" if processor.lexical_source == "text" else ""
        say(
            f"{source} does not say how its vectors were made. Taken for granted: vectors of {lexical_dim} numbers, "
            f"{made[processor.lexical_source]}{by}; prompt {processor.template!r}. If not so, give --encoder, "
            "--template, --lexical-source."
        )
    for name in ("is_local", "local_files_only"):  # how it was loaded here: another machine would write other bytes
        processor.tokenizer.init_kwargs.pop(name, None)
    encoder = processor.lexical_encoder
    if encoder is not None and (Path(encoder).is_absolute() or Path(encoder).is_dir()):
        raise ValueError(
            f"the lexical encoder is a folder of this machine, {encoder}, which readers have not. Put its Hub id into "
            "`lexical_encoder` of processor_config.json."
        )
    check_encoder(processor, say)
    return processor


def complete_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    """The fields of a processor that were given, and the encoder and the source that follow from them.

    An encoder is in the recipe only if it was named ("none" names none); with one, vectors are made of the text.
    """
    encoder = recipe.get("lexical_encoder")
    encoder = None if encoder == "none" else encoder
    source = "text" if encoder else "given"
    return {"lexical_source": source} | recipe | {"lexical_encoder": encoder}


def check_encoder(processor: T5FusionProcessor, say: Say) -> None:
    """Encodes a text, if the recipe names an encoder; says so where the encoder cannot be loaded here.

    Raises:
        ValueError: the encoder's vectors are of another width than the model's; or vectors are to be made of the text
            and no encoder is named.
    """
    if processor.lexical_encoder is None:
        if processor.lexical_source == "text":
            raise ValueError(
                "the vectors are to be made of the text (`lexical_source` is 'text'), and no encoder is named. Name it "
                "with --encoder ID, or in processor_config.json; or set `lexical_source` to 'given' there."
            )
        return
    try:
        processor.encode(TEXTS[:1])
    except (ImportError, OSError) as error:
        wanted = f"vectors of {processor.lexical_dim} numbers"
        say(f"whether {processor.lexical_encoder} makes {wanted} was not tried: {error}")


def check_nothing_local(bundle: Path, paths: list[Path]) -> None:
    """ValueError if a config, or the card, names a path of the author's machine."""
    for file in bundle.iterdir():
        if file.suffix in (".json", ".md") and file.name != "tokenizer.json":
            text = file.read_text(encoding="utf-8")
            named = [str(path) for path in paths if path != Path(path.anchor) and str(path) in text]
            if named:
                raise ValueError(f"{file.name} of the bundle would name {named[0]}, a path of this machine. Remove it.")
