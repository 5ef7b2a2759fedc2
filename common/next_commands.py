"""The commands that the program advises to type next. Each runs as it stands, except for its words in capitals."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from .run_files import EVALUATION, MANIFEST, RunFiles

if TYPE_CHECKING:
    from .folder_info import FolderInfo

COLUMNS = ("--text-column", "NAME", "--target-column", "NAME")


def command(*words: object) -> str:
    """Return a `t5fusion` command, with its words quoted for a shell."""
    return shlex.join(["t5fusion", *map(str, words)])


def after_generate(name: str) -> str:
    """Return the command that a user who has seen texts of this model most likely needs next."""
    folder = Path(name)
    if not folder.is_dir():
        return command("evaluate", name, "DATA", *COLUMNS)
    if (folder / MANIFEST).exists():
        return command("verify", name)
    files = RunFiles(folder)
    if files.record.get("source") and not (folder / EVALUATION).exists():
        return command("evaluate", name)  # It reads the rows that training held out.
    return files.export_command


def after_shrink(folder: str | Path) -> str:
    """Return the command that measures a model whose adapter was made smaller."""
    has_source = bool(RunFiles(folder).record.get("source"))  # Then `evaluate` reads the rows that training held out.
    return command("evaluate", folder, *([] if has_source else ["DATA", *COLUMNS]))


def after_info(facts: "FolderInfo") -> str:
    """Return the command that a user of this folder or repository most likely needs next."""
    name = facts.name.rstrip("/")
    if facts.what == "T5" or facts.kind == "fused":
        return command("train", "DATA", *COLUMNS, "--base-model", name)
    if facts.commit is not None or facts.what == "fused model":
        return command("generate", name, *_inputs(facts))
    if facts.what == "bundle":
        return command("verify", name)
    return RunFiles(facts.name).export_command


def _inputs(facts: "FolderInfo") -> list[str]:
    """Return the words of `generate` that name a text, or a file if the recipe needs more than a text."""
    has_encoder, kinds = bool(facts.recipe.get("lexical_encoder")), facts.recipe.get("vectors") or []
    given_kinds = kinds[has_encoder:] if len(kinds) > 1 else []
    is_given = facts.recipe.get("lexical_source") == "given"
    if not is_given and not given_kinds:
        return ["a text"]
    words = ["--file", "FILE"]
    if "{text}" in facts.recipe.get("template", "{text}"):
        words += ["--text-column", "COLUMN"]
    if is_given and (has_encoder or not given_kinds):
        words += ["--lexical-column" if has_encoder else "--vector-column", "COLUMN"]
    return words + [word for kind in given_kinds for word in ("--vector-column", f"{kind['name']}=COLUMN")]
