"""The model card of a bundle: `model_card.md`, filled in with what training and evaluation recorded.

The card leaves out what is not recorded, and names no file or folder of the author's machine. An export rewrites only
the sections between markers (`<!-- t5fusion:load --> ... <!-- /t5fusion:load -->`). What the user writes outside of
them, or changes in the metadata, survives the next export.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import CardData, EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard import RepoCard
from huggingface_hub.utils import validate_repo_id

from ..common.measures import SCORE_NAMES
from ..common.run_folder import RunFolder
from ..finetune.file_names import FILE_FORMATS
from .kinds import Kind
from .onnx_graphs import ENCODER
from .reader_call import install_line, reader_call

TEMPLATE = Path(__file__).parents[1] / "model_card.md"
CARD = "README.md"
EVALUATION_SECTIONS = ("results", "limits")  # the card's sections that depend on the evaluation alone
EVALUATION_FIELDS = ("metrics", "widget", "model-index")  # the metadata's fields that depend on the evaluation alone
UNNAMED_REPOSITORY, REVISION = "REPO_ID", "COMMIT"  # `name_repository` replaces them by the repository and its tag.
MARKER = re.compile(r"<!--\s*(/?)t5fusion:([a-z]+)\s*-->")
DIGEST = re.compile(r"([\w-]+)=([0-9a-f]{8})\b")
TASK = "text-generation"  # The Hub once had the task text2text-generation, and has moved its models here.
# the Hub's names of the measures
METRICS = {
    "rouge1": "rouge", "rouge2": "rouge", "rougeL": "rouge", "chrf": "chrf", "bleu": "bleu", "token_f1": "f1",
    "exact_match": "exact_match",
}  # fmt: skip


def make_card(
    bundle: Path,
    run: RunFolder,
    kind: Kind,
    repo_id: str | None = None,
    previous: str | None = None,
    evaluated: Path | None = None,
) -> str:
    """Return the whole text of a bundle's README.md.

    Args:
        bundle: Folder with config.json, processor_config.json and, if there is an adapter, adapter_config.json.
        run: The run folder that was exported. The card describes its record, evaluation and adapter config.
        kind: The kind of the bundle.
        repo_id: The repository that the load lines name. With None, they name `REPO_ID`, and the card explains what to
            put there.
        previous: The card of an earlier export. Its sections are rewritten, except those that the user deleted. All
            other text stays. Metadata that the user added or changed stays too, and what the user deleted does not
            come back.
        evaluated: Folder whose evaluation.json is used instead of the one in the run folder.

    Raises:
        ValueError: `previous` has a broken marker or unreadable metadata, or `repo_id` is not a valid id.
    """
    facts = read_facts(RunFolder(bundle), run, kind, run if evaluated is None else RunFolder(evaluated))
    data = make_metadata(facts)
    digests = " ".join(f"{name}={_digest(value)}" for name, value in data.to_dict().items())
    card = ModelCard.from_template(
        data, template_path=str(TEMPLATE), placeholder=UNNAMED_REPOSITORY, digests=digests, **facts
    )
    text = f"{card}\n"  # jinja2 drops the last line break
    if previous is not None:
        text = keep_changes(text, previous)
    return text if repo_id is None else name_repository(text, repo_id)


def name_repository(card: str, repo_id: str, revision: str = REVISION) -> str:
    """Return the card with load lines that name a repository, whatever they named before.

    Args:
        card: The text of a card. If the user deleted its load lines, it is returned unchanged.
        repo_id: The repository.
        revision: The tag that the card advises readers to pin.

    Raises:
        ValueError: `repo_id` is not a valid id on the Hub, or the card has a broken marker.
    """
    validate_repo_id(repo_id)
    section = find_sections(card).get("load", slice(0, 0))
    text = card[section]
    named = re.search(r'(?:from_pretrained\(|pipeline\(model=)"([^"]+)"', text)
    if named is not None:
        for quote in '"`':
            text = text.replace(f"{quote}{named[1]}{quote}", f"{quote}{repo_id}{quote}")
    text = re.sub(r'revision="[^"]*"', f'revision="{revision}"', text)
    return replace_section(card, section, text)


def with_evaluation(bundle: Path, kind: Kind) -> str:
    """Return the card of a bundle with the evaluation.json beside it filled in.

    Only what depends on the evaluation is written again. The rest of the card stays, because it is made of
    training.json, which a bundle does not hold.

    Raises:
        ValueError: The card has a broken marker or unreadable metadata.
    """
    card = make_card(bundle, RunFolder(bundle), kind)
    if not (bundle / CARD).exists():
        return card
    previous = (bundle / CARD).read_text(encoding="utf-8")
    new, old = RepoCard(card), read_card(previous)
    old_sections = find_sections(old.text)
    for name, section in reversed(find_sections(new.text).items()):  # From the end, as in `keep_changes`.
        if name not in (*EVALUATION_SECTIONS, "metadata"):
            new.text = replace_section(new.text, section, old.text[old_sections.get(name, slice(0, 0))])
    keep_other_fields(new, old)
    return keep_changes(str(new), previous)


def keep_other_fields(new: RepoCard, old: RepoCard) -> None:
    """Copy the metadata of `old` and their digests to `new`, except the fields of the evaluation."""
    fields = {name: value for name, value in old.data.to_dict().items() if name not in EVALUATION_FIELDS}
    digests = {name: value for name, value in digests_of(old.text).items() if name not in EVALUATION_FIELDS}
    for name, value in new.data.to_dict().items():
        if name in EVALUATION_FIELDS:
            fields[name], digests[name] = value, _digest(value)
    section = find_sections(new.text)["metadata"]
    order = dict.fromkeys([*new.data.to_dict(), *digests])  # the order in which an export writes the fields
    listed = " ".join(f"{name}={digests[name]}" for name in order if name in digests)
    metadata = re.sub(rf"({DIGEST.pattern}\s*)+", f"{listed} ", new.text[section])
    new.text = replace_section(new.text, section, metadata)
    new.data = CardData(**fields)


def read_card(text: str) -> RepoCard:
    """Parse a card.

    Raises:
        ValueError: Its metadata cannot be read.
    """
    try:
        return RepoCard(text.replace("\r\n", "\n"))
    except Exception as error:  # The scanner, parser and constructor of YAML each raise a type of their own.
        cause = " ".join(str(error).split())
        raise ValueError(
            f"the card's metadata cannot be read ({cause}). Correct the YAML between the first two lines ---."
        ) from error


def digests_of(text: str) -> dict[str, str]:
    """Return the digest of each metadata field as it was generated, by the field's name."""
    return dict(DIGEST.findall(text[find_sections(text).get("metadata", slice(0, 0))]))


def keep_changes(card: str, previous: str) -> str:
    """Return `previous` with the sections and the metadata of `card`, except for metadata that the user changed."""
    new, old = RepoCard(card), read_card(previous)
    old_sections, new_sections = find_sections(old.text), find_sections(new.text)
    digests = digests_of(old.text)
    for name in reversed(old_sections):  # From the end, so that the positions before it stay right.
        if name in new_sections:
            old.text = replace_section(old.text, old_sections[name], new.text[new_sections[name]])
    before, generated = old.data.to_dict(), new.data.to_dict()
    updated = {name: value for name, value in generated.items() if name in before or name not in digests}
    changed_by_user = {name: value for name, value in before.items() if _digest(value) != digests.get(name)}
    merged = updated | changed_by_user
    old.data = CardData(**{name: merged[name] for name in dict.fromkeys([*before, *generated]) if name in merged})
    return str(old)


def find_sections(card: str) -> dict[str, slice]:
    """Return the position of each generated section, by its name. A section is the text between its two markers.

    Raises:
        ValueError: A marker has no partner, lies within a different section, or occurs twice.
    """
    sections: dict[str, slice] = {}
    opened = None
    for marker in MARKER.finditer(card):
        closes, name = marker.groups()
        if closes and opened is not None and opened[2] == name:
            sections[name] = slice(opened.end(), marker.start())
            opened = None
        elif not closes and opened is None and name not in sections:
            opened = marker
        else:
            raise _broken(marker if closes or opened is None else opened)
    if opened is not None:
        raise _broken(opened)
    return sections


def replace_section(card: str, section: slice, text: str) -> str:
    """Return a card with a new text in a section."""
    return card[: section.start] + text + card[section.stop :]


def hub_id(name: str | None, source: Path) -> str | None:
    """Return `name` if it is the id of a repository on the Hub, "owner/name"; None if it is a file or a folder.

    A relative path looks like an id. It is relative to the folder in which training ran, which is most likely one of
    the folders above `source`.
    """
    if name is None or "/" not in name or Path(name).suffix in FILE_FORMATS:
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return None if any((folder / name).exists() for folder in (Path(), *source.resolve().parents)) else name


def read_facts(bundle: RunFolder, run: RunFolder, kind: Kind, evaluated: RunFolder) -> dict[str, Any]:
    """Return the values that fill in the template. A value that is not recorded is None or empty.

    Args:
        bundle: The bundle, without its card.
        run: The run folder that was exported.
        kind: The kind of the bundle.
        evaluated: The folder whose evaluation.json the card reports.
    """
    config, recipe = bundle.model_config, bundle.processor_config
    trained = kind != "fused"
    record, evaluation = (run.record, evaluated.evaluation) if trained else ({}, {})
    embedded = run.embedded_base or bundle.embedded_base
    base_model = None if embedded else hub_id(config.get("backbone"), run.path)
    encoder = hub_id(encoder_id(recipe["lexical_encoder"]), run.path)
    return {
        "kind": kind,
        "embedded": embedded,
        "base_model": base_model,
        "title": f"{(embedded or base_model or 'T5').rpartition('/')[2]} with lexical vectors",
        "revision": config.get("backbone_revision"),
        "recipe": recipe,
        "encoder": encoder,
        "install": install_line(bundle.has_adapter or kind == "fused", encoder),
        "call": reader_call(recipe, encoder),
        "prompt": json.dumps(recipe["template"], ensure_ascii=False),
        "has_adapter": bundle.has_adapter,
        "has_graphs": (bundle.path / ENCODER).exists(),
        "adapter": run.adapter_config if trained else {},
        "record": record,
        "trained_on": hub_id(record.get("data"), run.path),
        "evaluation": evaluation,
        "measures": shown_measures(evaluation),
        "evaluated_on": hub_id(evaluation.get("data"), run.path),
    }


def encoder_id(name: str | None) -> str | None:
    """Return the full id of an encoder: sentence-transformers takes a bare name for one of its own models."""
    return name if name is None or "/" in name else f"sentence-transformers/{name}"


def shown_measures(evaluation: dict[str, Any]) -> dict[str, str]:
    """Return the names that the card shows of the measures of an evaluation, by their keys in its file."""
    measured = {name for values in evaluation.get("measures", {}).values() for name in values}
    return {name: label for name, label in SCORE_NAMES.items() if name in measured}


def make_metadata(facts: dict[str, Any]) -> ModelCardData:
    """Return the card's metadata. Unknown fields are left out, and the user may add them."""
    evaluation, peft_type = facts["evaluation"], facts["adapter"].get("peft_type")
    measures = evaluation.get("measures", {}).get("true", {})
    results = [
        EvalResult(
            task_type=TASK,
            dataset_type=facts["evaluated_on"],
            dataset_name=facts["evaluated_on"],
            dataset_split=evaluation["split"],
            metric_type=METRICS.get(name, name),
            metric_name=label,
            metric_value=round(measures[name], 4),
        )
        for name, label in SCORE_NAMES.items()
        if name in measures and facts["evaluated_on"]
    ]
    tags = [*([peft_type.lower()] if peft_type else []), *(["onnx"] if facts["has_graphs"] else [])]
    rows = [row for row in evaluation.get("samples", []) if row["text"]]  # The Hub shows a sample by its text.
    samples = [{"text": row["text"], "output": {"text": row["output"]}} for row in rows]
    return ModelCardData(
        base_model=facts["base_model"],
        library_name="peft" if facts["has_adapter"] else "transformers",
        pipeline_tag=TASK,
        tags=["t5fusion", "text2text-generation", "transformers", *tags],
        datasets=[facts["trained_on"]] if facts["trained_on"] else None,
        metrics=list(dict.fromkeys(METRICS[name] for name in METRICS if name in measures)) or None,
        inference=False,  # The Hub's own inference runs no code of a repository.
        widget=samples or None,
        model_name=facts["title"] if results else None,
        eval_results=results or None,
    )


def _broken(marker: re.Match) -> ValueError:
    return ValueError(
        f"the card's marker {marker[0]} has no partner, or occurs twice; expected each section once, from "
        "<!-- t5fusion:NAME --> to <!-- /t5fusion:NAME -->. Put the missing marker back, or delete the section with "
        "its markers. A deleted section does not come back."
    )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:8]
