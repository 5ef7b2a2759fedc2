"""`t5fusion export`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..common.console import say, silence_libraries


class KindOption(str, Enum):
    adapter = "adapter"
    standalone = "standalone"
    merged = "merged"
    fused = "fused"
    base = "base"


class FormatOption(str, Enum):
    safetensors = "safetensors"
    onnx = "onnx"


def export(
    source: Annotated[str, typer.Argument(help="Folder that training saved; with --kind base, id or folder of a T5.")],
    bundle: Annotated[Path, typer.Argument(help="Folder to write.")],
    kind: Annotated[KindOption, typer.Option(help="What travels.")] = KindOption.adapter,
    base_model: Annotated[str | None, typer.Option(help="ID or ID@REVISION of the T5 that readers get.")] = None,
    template: Annotated[str | None, typer.Option(help="The prompt, where no processor was saved.")] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Sentence-transformers model that made the vectors, where no processor was saved. Default: none"
        ),
    ] = None,
    lexical_source: Annotated[
        str | None,
        typer.Option(
            help="text, given or none, where no processor was saved. Default: text with --encoder, else given"
        ),
    ] = None,
    format: Annotated[
        FormatOption, typer.Option(help="onnx: graphs for onnxruntime as well, with the adapter folded in.")
    ] = FormatOption.safetensors,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the bundle that is there.")] = False,
):
    """Write a folder that anyone can load: code, config, adapter, tokenizer, processor, card, reference outputs.

    adapter: base weights come from the backbone; standalone: they travel too; merged: no PEFT needed; base: untuned.

    Example: [bold]t5fusion export runs/files bundles/describer[/bold]
    """
    silence_libraries()
    from ..hub_export.bundle import export as write

    given = {"template": template, "lexical_encoder": encoder, "lexical_source": lexical_source}
    recipe = {name: value for name, value in given.items() if value is not None}
    folder = write(source, bundle, kind.value, base_model, recipe, overwrite, say, format.value)
    size = sum(file.stat().st_size for file in folder.iterdir())
    carried = f"{kind.value} and ONNX graphs" if format == FormatOption.onnx else kind.value
    print(f"{bundle}: {carried}, {size / 1e6:.1f} MB. Next: t5fusion verify {bundle}")
