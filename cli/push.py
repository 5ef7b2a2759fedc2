"""`t5fusion push`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..common.console import say
from ..common.panels import HUB
from .arguments import TrustCode, UseCache
from .libraries import load_libraries


def push(
    bundle: Annotated[Path, typer.Argument(help="Folder that `t5fusion export` wrote.")],
    repo_id: Annotated[str, typer.Argument(help="OWNER/NAME on the Hub; it is created if it does not exist.")],
    private: Annotated[
        bool, typer.Option("--private", rich_help_panel=HUB, help="Create a private repository.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(rich_help_panel=HUB, help="Branch to commit to. Default: main.")
    ] = None,
    create_pr: Annotated[
        bool,
        typer.Option("--create-pr", rich_help_panel=HUB, help="Open a pull request, instead of changing the branch."),
    ] = False,
    message: Annotated[str | None, typer.Option(rich_help_panel=HUB, help="Message of the commit.")] = None,
    delete_others: Annotated[
        bool,
        typer.Option(
            "--delete-others", rich_help_panel=HUB, help="Delete the repository's files that are not in the bundle."
        ),
    ] = False,
    trust_code: TrustCode = False,
    use_cache: UseCache = False,
):
    """Verify a bundle, then send it to the Hub in one commit.

    Example: [bold]t5fusion push bundles/describer me/describer[/bold]
    """
    # These import the Hub's client, which --help does not need.
    from ..common.folder_names import check_ended
    from ..common.hub_errors import check_can_push
    from ..common.replace_folder import recover
    from ..hub_export.manifest import read_manifest

    recover(bundle)
    check_ended(bundle)
    read_manifest(bundle)
    check_can_push(repo_id)
    load_libraries()
    from ..hub_export.upload import push as push_bundle  # It is slow to import, and --help does not need it.

    pushed = push_bundle(
        bundle,
        repo_id,
        private=private,
        revision=revision,
        create_pr=create_pr,
        message=message,
        delete_others=delete_others,
        use_cache=use_cache,
        trust_code=trust_code,
        say=say,
    )
    from ..common.folder_info import folder_info
    from ..hub_export.reader_call import install_line

    facts = folder_info(str(bundle))
    reader = "Once the pull request is merged, a reader" if create_pr else "A reader"
    install = install_line(facts.adapter is not None or facts.kind == "fused", facts.recipe.get("lexical_encoder"))
    lines = "\n  ".join(reader_lines(facts.recipe, repo_id, revision))
    print(f"{pushed.url} ({pushed.size / 1e6:.1f} MB). {reader} types:\n  {install}\nand in Python:\n  {lines}")


def reader_lines(recipe: dict[str, Any], repo_id: str, revision: str | None = None) -> list[str]:
    """Return the lines of Python that load a pushed bundle and generate a text.

    Args:
        recipe: The fields of the bundle's processor.
        repo_id: The repository.
        revision: The branch that the bundle was pushed to; None for main.
    """
    from ..hub_export.reader_call import reader_call

    pin = f', revision="{revision}"' if revision else ""
    call = reader_call(recipe, recipe.get("lexical_encoder"))
    lines = ["from transformers import AutoModelForSeq2SeqLM, AutoProcessor"]
    if call.vector_lines:
        lines = ["import torch", *lines, *call.vector_lines.splitlines()]
    return [
        *lines,
        f'processor = AutoProcessor.from_pretrained("{repo_id}"{pin}, trust_remote_code=True)',
        f'model = AutoModelForSeq2SeqLM.from_pretrained("{repo_id}"{pin}, trust_remote_code=True)',
        f"outputs = model.generate(**processor({call.arguments}), max_new_tokens=64)",
        "print(processor.batch_decode(outputs, skip_special_tokens=True))",
    ]
