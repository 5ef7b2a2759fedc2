"""The commands that the program advises to type next. Each runs as it stands, except for its words in capitals."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .run_files import EVALUATION, MANIFEST, PROCESSOR_CONFIG, RunFiles, find_folder

if TYPE_CHECKING:
    from .folder_info import FolderInfo

COLUMNS = ("--text-column", "COLUMN", "--target-column", "COLUMN")


def command(*words: object) -> str:
    """Return a `t5fusion` command, with its words quoted for a shell."""
    return shlex.join(["t5fusion", *map(str, words)])


def after_generate(name: str, revision: str | None = None) -> str:
    """Return the command that a user who has seen texts of this model most likely needs next.

    Args:
        name: A folder; or the id of a repository, whose files are in the Hub's cache.
        revision: Branch, tag or commit of the repository.
    """
    folder = Path(name)
    if not folder.is_dir():
        return command("evaluate", name, "DATA", *_columns_to_evaluate(name, revision), *_revision(revision))
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


def after_info(facts: "FolderInfo", revision: str | None = None) -> str:
    """Return the command that a user of this folder or repository most likely needs next.

    Args:
        facts: What the folder or repository holds.
        revision: Branch, tag or commit of the repository.
    """
    name = facts.name.rstrip("/")
    if facts.what == "T5" or facts.kind == "fused":
        return command("train", "DATA", *COLUMNS, "--base-model", name)
    if facts.commit is not None or facts.what == "fused model":
        return command("generate", name, *_inputs(facts.recipe), *_revision(revision))
    if facts.what == "bundle":
        return command("verify", name)
    return RunFiles(facts.name).export_command


def _revision(revision: str | None) -> list[str]:
    """Return the words that name a revision; none for the default one."""
    return ["--revision", revision] if revision else []


def _inputs(recipe: Mapping[str, Any]) -> list[str]:
    """Return the words of `generate` that name a text, or a file if the recipe needs more than a text."""
    columns = input_columns(recipe)
    return ["--file", "FILE", *columns] if columns else ["a text"]


def _columns_to_evaluate(name: str, revision: str | None) -> Sequence[str]:
    """Return the words of `evaluate` that name the columns for a model in the Hub's cache."""
    try:
        # Without the pattern, the Hub's client would refuse a repository of which not every file was downloaded.
        folder = find_folder(name, revision, local_files_only=True, allow_patterns=[PROCESSOR_CONFIG])
    except OSError:  # It is not in the cache, so its recipe is not known.
        return COLUMNS
    columns = input_columns(RunFiles(folder).processor_config)
    return [*columns, "--target-column", "COLUMN"] if columns else COLUMNS


def input_columns(recipe: Mapping[str, Any]) -> list[str]:
    """Return the words that name the columns of the inputs; none if the recipe needs nothing but a text."""
    has_encoder, kinds = bool(recipe.get("lexical_encoder")), recipe.get("vectors") or []
    # The encoder makes the first kind. If there is only one kind, the column needs no name of a kind.
    given_kinds = (kinds[1:] if has_encoder else kinds) if len(kinds) > 1 else []
    is_given = recipe.get("lexical_source") == "given"
    if not is_given and not given_kinds:
        return []
    words = ["--text-column", "COLUMN"] if "{text}" in recipe.get("template", "{text}") else []
    if is_given and (has_encoder or not given_kinds):
        words += ["--lexical-column" if has_encoder else "--vector-column", "COLUMN"]
    return words + [word for kind in given_kinds for word in ("--vector-column", f"{kind['name']}=COLUMN")]
