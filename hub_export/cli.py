"""The command line, whole: to `demo | train | generate | evaluate` it adds `export | verify | push`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..finetune.cli import app, main, quiet, say


class KindOption(str, Enum):
    adapter = "adapter"
    standalone = "standalone"
    merged = "merged"
    base = "base"


class FormatOption(str, Enum):
    safetensors = "safetensors"
    onnx = "onnx"


UseCache = Annotated[
    bool, typer.Option("--use-cache", help="Use this machine's cache of the Hub; else all is fetched, as by a reader.")
]
TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="Run its Python files even where they are not this package's own.")
]


@app.command()
def export(
    source: Annotated[str, typer.Argument(help="Folder that training saved; with --kind base, id or folder of a T5.")],
    bundle: Annotated[Path, typer.Argument(help="Folder to write.")],
    kind: Annotated[KindOption, typer.Option(help="What travels.")] = KindOption.adapter,
    backbone: Annotated[str | None, typer.Option(help="ID or ID@REVISION of the T5 that readers get.")] = None,
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
    quiet()
    from .bundle import export as write

    given = {"template": template, "lexical_encoder": encoder, "lexical_source": lexical_source}
    recipe = {name: value for name, value in given.items() if value is not None}
    folder = write(source, bundle, kind.value, backbone, recipe, overwrite, say, format.value)
    size = sum(file.stat().st_size for file in folder.iterdir())
    carried = f"{kind.value} and ONNX graphs" if format == FormatOption.onnx else kind.value
    print(f"{bundle}: {carried}, {size / 1e6:.1f} MB. Next: t5fusion verify {bundle}")


@app.command()
def verify(
    name: Annotated[str, typer.Argument(help="Folder that `t5fusion export` wrote, or id of a repository.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the repository.")] = None,
    base: Annotated[str | None, typer.Option(help="Repository of the fused base, to try the adapter on.")] = None,
    trust_code: TrustCode = False,
    use_cache: UseCache = False,
):
    """Reload a bundle as a reader would, through every door, and compare with the outputs that it carries.

    Example: [bold]t5fusion verify me/describer[/bold]
    """
    quiet()
    from .verify import verify as prove

    report = prove(name, revision, use_cache, base, trust_code=trust_code, say=print)
    if not report.ok:
        raise ValueError(f"{name} does not verify: {len(report.failures)} of {len(report.lines)} lines did not hold.")


@app.command()
def push(
    bundle: Annotated[Path, typer.Argument(help="Folder that `t5fusion export` wrote.")],
    repo_id: Annotated[str, typer.Argument(help="OWNER/NAME on the Hub; created where it is missing.")],
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to commit to. Default: main")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    delete_others: Annotated[
        bool, typer.Option("--delete-others", help="Remove the files that the bundle has not.")
    ] = False,
    trust_code: TrustCode = False,
    use_cache: UseCache = False,
):
    """Verify a bundle, then send it to the Hub in one commit.

    Example: [bold]t5fusion push bundles/describer me/describer[/bold]
    """
    quiet()
    from .push import push as send

    pushed = send(
        bundle, repo_id, private, revision, create_pr, message, delete_others, use_cache, trust_code, say=say
    )  # fmt: skip
    print(
        f"{pushed.url} ({pushed.size / 1e6:.1f} MB). A reader types:\n"
        f"  from transformers import AutoModelForSeq2SeqLM, AutoProcessor\n"
        f'  processor = AutoProcessor.from_pretrained("{repo_id}", trust_remote_code=True)\n'
        f'  model = AutoModelForSeq2SeqLM.from_pretrained("{repo_id}", trust_remote_code=True)'
    )


__all__ = ["app", "main"]
