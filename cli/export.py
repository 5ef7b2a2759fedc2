"""`t5fusion export`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..common.console import say
from ..common.panels import BUNDLE, OUTPUT
from ..hub_export.kinds import KINDS, parse_kind
from .libraries import load_libraries
from .parsing import one_of


class FormatOption(str, Enum):
    safetensors = "safetensors"
    onnx = "onnx"


def export(
    source: Annotated[
        str, typer.Argument(help="Folder that training saved; with --kind fused, id or folder of a base model.")
    ],
    bundle: Annotated[Path, typer.Argument(help="Folder to write.")],
    kind: Annotated[
        str,
        typer.Option(**one_of(KINDS), rich_help_panel=BUNDLE, help="What the bundle holds (see above)."),
    ] = "adapter",
    base_model: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=BUNDLE,
            help="ID or ID@REVISION of the base model that readers get. Default: the one trained on.",
        ),
    ] = None,
    template: Annotated[
        str | None, typer.Option(rich_help_panel=BUNDLE, help="The prompt, if SOURCE holds no processor.")
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=BUNDLE,
            help="Model of sentence-transformers that made the vectors, if SOURCE holds no processor. Default: none.",
        ),
    ] = None,
    lexical_source: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=BUNDLE,
            help="Where the vectors come from, if SOURCE holds no processor: text, given or none. Default: text with "
            "--encoder, otherwise given.",
        ),
    ] = None,
    format: Annotated[
        FormatOption,
        typer.Option(
            rich_help_panel=BUNDLE, help="onnx: the bundle also holds graphs for onnxruntime, with the adapter merged."
        ),
    ] = FormatOption.safetensors,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", rich_help_panel=OUTPUT, help="Replace an earlier bundle.")
    ] = False,
):
    """Write a folder that anyone can load: code, config, adapter, tokenizer, processor, card, reference outputs.

    The kinds: adapter is the smallest; readers get the base weights from the base model on the Hub. standalone also
    holds the base weights, for a base model that is not on the Hub, such as tiny_t5_v2. merged has the adapter merged
    into the base weights, so that readers need no PEFT. fused is the untuned fused model, to train adapters on.

    Example: [bold]t5fusion export runs/files bundles/describer[/bold]
    """
    # It imports the Hub's client, which --help does not need.
    from ..common.folder_names import check_base_model, check_source

    check_source(source, is_base_model=parse_kind(kind) == "fused")
    if base_model is not None and not Path(base_model).is_dir():
        check_base_model(base_model.partition("@")[0])
    load_libraries()
    # These are slow to import, and --help does not need them.
    from ..common.next_commands import command
    from ..hub_export.bundle import export as write_bundle

    given = {"template": template, "lexical_encoder": encoder, "lexical_source": lexical_source}
    recipe = {name: value for name, value in given.items() if value is not None}
    folder = write_bundle(
        source, bundle, kind, base_model=base_model, recipe=recipe, overwrite=overwrite, say=say, format=format.value
    )
    size = sum(file.stat().st_size for file in folder.iterdir())
    content = f"{kind} and ONNX graphs" if format == FormatOption.onnx else kind
    print(f"{bundle}: {content}, {size / 1e6:.1f} MB")
    say(f"Next: {command('verify', bundle)}")
