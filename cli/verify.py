"""`t5fusion verify`."""

from pathlib import Path
from typing import Annotated

import typer

from ..common.console import say
from ..common.panels import HUB
from .arguments import TrustCode, UseCache
from .libraries import load_libraries


def verify(
    name: Annotated[str, typer.Argument(help="Folder that `t5fusion export` wrote, or id of a repository.")],
    revision: Annotated[
        str | None, typer.Option(rich_help_panel=HUB, help="Branch, tag or commit of the repository.")
    ] = None,
    fused_model: Annotated[
        str | None,
        typer.Option(rich_help_panel=HUB, help="Repository of the untuned fused model, to load the adapter on."),
    ] = None,
    trust_code: TrustCode = False,
    use_cache: UseCache = False,
):
    """Reload a bundle as a reader would, by every loading path, and compare with the reference outputs in it.

    Example: [bold]t5fusion verify me/describer[/bold]
    """
    from ..common.folder_names import check_reachable  # It imports the Hub's client, which --help does not need.

    check_reachable(name, revision)
    if fused_model is not None:
        check_reachable(fused_model)
    load_libraries()
    # These are slow to import, and --help does not need them.
    from ..common.next_commands import command
    from ..hub_export.verification import verify as verify_bundle

    report = verify_bundle(name, revision, use_cache, fused_model=fused_model, trust_code=trust_code, say=print)
    if not report.ok:
        raise ValueError(f"{name} does not verify: {len(report.failures)} of {len(report.lines)} checks failed.")
    if Path(name).is_dir():
        say(f"Next: {command('push', name, f'OWNER/{Path(name).resolve().name}')}")
