"""The model card of a bundle: `model_card.md`, filled in with what the run recorded, and what the user made of it.

What is not recorded is left out, and nothing of the author's machine gets in. What the user changes outside of the
markers (`<!-- t5fusion:load --> ... <!-- /t5fusion:load -->`), and in the metadata, survives the next export.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import CardData, EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard import RepoCard
from huggingface_hub.utils import validate_repo_id

from ..common.run_folder import RECORD
from ..common.saved_files import read_json
from ..finetune.evaluation import EVALUATION
from ..finetune.files import FILE_KINDS
from ..naming_t5fusion import FusedName
from ..tiny_t5 import PATH as TINY_T5
from .onnx_graphs import ENCODER

TEMPLATE = Path(__file__).parents[1] / "model_card.md"
CARD = "README.md"
# what of a card depends on the evaluation alone
OF_EVALUATION = {"sections": ("results", "limits"), "fields": ("metrics", "widget", "model-index")}
PLACEHOLDER, REVISION = "REPO_ID", "COMMIT"  # stand for the repository's id, and what to pin, until `name_repository`
MARKER = re.compile(r"<!--\s*(/?)t5fusion:([a-z]+)\s*-->")
DIGEST = re.compile(r"([\w-]+)=([0-9a-f]{8})\b")
TASK = "text-generation"  # where the Hub has put text2text-generation, once a task of its own
SCORES = {"loss": "loss", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "chrf": "chrF"}
Kind = Literal["adapter", "standalone", "merged", "base"]


def make_card(
    bundle: Path,
    source: Path,
    kind: Kind,
    repo_id: str | None = None,
    previous: str | None = None,
    evaluated: Path | None = None,
) -> str:
    """The whole text of the bundle's README.md.

    Args:
        bundle: holds config.json, processor_config.json and, if there is an adapter, adapter_config.json.
        source: what training wrote; training.json, evaluation.json and adapter_config.json are read where they are.
        repo_id: what the load lines name; None for a placeholder, which the card explains.
        previous: the card of an earlier export. Its sections are written anew and those deleted stay deleted; all else
            in it stays, and so does metadata that the user added, changed or took out.
        evaluated: the folder of evaluation.json; None for `source`.

    Raises:
        ValueError: `previous` has a broken marker or unreadable metadata, or `repo_id` is no id.
    """
    facts = read_facts(bundle, source, kind, evaluated or source)
    data = make_metadata(facts)
    digests = " ".join(f"{name}={_digest(value)}" for name, value in data.to_dict().items())
    card = ModelCard.from_template(data, template_path=str(TEMPLATE), placeholder=PLACEHOLDER, digests=digests, **facts)
    text = f"{card}\n"  # jinja2 drops the last line break
    if previous is not None:
        text = keep_changes(text, previous)
    return text if repo_id is None else name_repository(text, repo_id)


def name_repository(card: str, repo_id: str, revision: str = REVISION) -> str:
    """The card with load lines that name `repo_id`, whatever they named before; as it is if they were deleted.

    Args:
        revision: what the card tells readers to pin, a tag.

    Raises:
        ValueError: `repo_id` is no id of the Hub, or the card has a broken marker.
    """
    validate_repo_id(repo_id)
    place = find_sections(card).get("load", slice(0, 0))
    text = card[place]
    named = re.search(r'from_pretrained\("([^"]+)"', text)
    if named is not None:
        for quote in '"`':
            text = text.replace(f"{quote}{named[1]}{quote}", f"{quote}{repo_id}{quote}")
    text = re.sub(r'revision="[^"]*"', f'revision="{revision}"', text)
    return card[: place.start] + text + card[place.stop :]


def with_evaluation(bundle: Path, kind: Kind) -> str:
    """The card of a bundle, filled in with the evaluation.json that lies beside it; all else in the card stays.

    What training recorded is not in a bundle, so the other sections cannot be written again from it.

    Raises:
        ValueError: the card has a broken marker or unreadable metadata.
    """
    card = make_card(bundle, bundle, kind)
    if not (bundle / CARD).exists():
        return card
    previous = (bundle / CARD).read_text(encoding="utf-8")
    new, old = RepoCard(card), read_card(previous)
    for name, place in reversed(find_sections(new.text).items()):
        if name not in (*OF_EVALUATION["sections"], "metadata"):
            kept = old.text[find_sections(old.text).get(name, slice(0, 0))]
            new.text = new.text[: place.start] + kept + new.text[place.stop :]
    fields = {name: value for name, value in old.data.to_dict().items() if name not in OF_EVALUATION["fields"]}
    digests = {name: value for name, value in digests_of(old.text).items() if name not in OF_EVALUATION["fields"]}
    for name, value in new.data.to_dict().items():
        if name in OF_EVALUATION["fields"]:
            fields[name], digests[name] = value, _digest(value)
    place = find_sections(new.text)["metadata"]
    names = dict.fromkeys([*new.data.to_dict(), *digests])  # in the order in which an export writes them
    listed = " ".join(f"{name}={digests[name]}" for name in names if name in digests)
    told = re.sub(rf"({DIGEST.pattern}\s*)+", f"{listed} ", new.text[place])
    new.text = new.text[: place.start] + told + new.text[place.stop :]
    new.data = CardData(**fields)
    return keep_changes(str(new), previous)


def read_card(text: str) -> RepoCard:
    """A card; ValueError where its metadata cannot be read."""
    try:
        return RepoCard(text.replace("\r\n", "\n"))
    except Exception as error:  # of many kinds: of the YAML's scanner, parser and constructor
        cause = " ".join(str(error).split())
        raise ValueError(
            f"the card's metadata cannot be read ({cause}). Mend it, between the two lines ---."
        ) from error


def digests_of(text: str) -> dict[str, str]:
    """The digest of each field of the metadata as it was generated, by the field's name."""
    return dict(DIGEST.findall(text[find_sections(text).get("metadata", slice(0, 0))]))


def keep_changes(card: str, previous: str) -> str:
    """`previous` with the sections of `card`, and with its metadata where the user has not changed them."""
    new, old = RepoCard(card), read_card(previous)
    sections, fresh = find_sections(old.text), find_sections(new.text)
    digests = digests_of(old.text)
    for name in reversed(sections):  # from the end, so that the places before it stay right
        if name in fresh:
            old.text = old.text[: sections[name].start] + new.text[fresh[name]] + old.text[sections[name].stop :]
    found, made = old.data.to_dict(), new.data.to_dict()
    ours = {name: value for name, value in made.items() if name in found or name not in digests}
    theirs = {name: value for name, value in found.items() if _digest(value) != digests.get(name)}
    merged = ours | theirs
    old.data = CardData(**{name: merged[name] for name in dict.fromkeys([*found, *made]) if name in merged})
    return str(old)


def find_sections(card: str) -> dict[str, slice]:
    """Where each generated section is, by its name: what stands between its markers.

    Raises:
        ValueError: a marker has no partner, or is within another section, or there twice.
    """
    found: dict[str, slice] = {}
    opened = None
    for marker in MARKER.finditer(card):
        closes, name = marker.groups()
        if closes and opened is not None and opened[2] == name:
            found[name] = slice(opened.end(), marker.start())
            opened = None
        elif not closes and opened is None and name not in found:
            opened = marker
        else:
            raise _broken(marker if closes or opened is None else opened)
    if opened is not None:
        raise _broken(opened)
    return found


def hub_id(name: str | None, source: Path) -> str | None:
    """`name` if it is that of a repository on the Hub, "owner/name"; None for a file or folder.

    A relative path looks like an id. It starts from where training ran, which is most likely a folder above `source`.
    """
    if name is None or "/" not in name or Path(name).suffix in FILE_KINDS:
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return None if any((folder / name).exists() for folder in (Path(), *source.resolve().parents)) else name


def read_facts(bundle: Path, source: Path, kind: str, evaluated: Path) -> dict[str, Any]:
    """What the template is filled in with; None or empty where nothing is recorded."""
    config, recipe = _read(bundle / "config.json"), _read(bundle / "processor_config.json")
    record, evaluation, adapter = (
        {} if kind == "base" else _read(folder / name)
        for folder, name in ((source, RECORD), (evaluated, EVALUATION), (source, "adapter_config.json"))
    )
    named = FusedName.parse(adapter.get("base_model_name_or_path")).base_model
    bases = {record.get("options", {}).get("base"), config.get("backbone"), named}
    bases |= {str(source)} if kind == "base" else set()
    embedded = not bases.isdisjoint({"tiny_t5", TINY_T5})
    backbone = None if embedded else hub_id(config.get("backbone"), source)
    return {
        "kind": kind,
        "embedded": embedded,
        "backbone": backbone,
        "title": f"{'tiny_t5' if embedded else (backbone or 'T5').rpartition('/')[2]} with lexical vectors",
        "revision": config.get("backbone_revision"),
        "recipe": recipe,
        "encoder": hub_id(encoder_id(recipe["lexical_encoder"]), source),
        "prompt": json.dumps(recipe["template"], ensure_ascii=False),
        "has_adapter": (bundle / "adapter_config.json").exists(),
        "has_graphs": (bundle / ENCODER).exists(),
        "adapter": adapter,
        "record": record,
        "trained_on": hub_id(record.get("data"), source),
        "evaluation": evaluation,
        "evaluated_on": hub_id(evaluation.get("data"), source),
    }


def encoder_id(name: str | None) -> str | None:
    """The encoder's id as sentence-transformers completes it: a bare name is one of its own models."""
    return name if name is None or "/" in name else f"sentence-transformers/{name}"


def make_metadata(facts: dict[str, Any]) -> ModelCardData:
    """The card's metadata; what is not known is not in it, and the user may add it."""
    evaluation, peft_type = facts["evaluation"], facts["adapter"].get("peft_type")
    measures = evaluation.get("measures", {}).get("true", {})
    results = [
        EvalResult(
            task_type=TASK,
            dataset_type=facts["evaluated_on"],
            dataset_name=facts["evaluated_on"],
            dataset_split=evaluation["split"],
            metric_type="rouge" if name.startswith("rouge") else name,
            metric_name=label,
            metric_value=round(measures[name], 4),
        )
        for name, label in SCORES.items()
        if name in measures and facts["evaluated_on"]
    ]
    kinds = [*([peft_type.lower()] if peft_type else []), *(["onnx"] if facts["has_graphs"] else [])]
    samples = [{"text": row["text"], "output": {"text": row["output"]}} for row in evaluation.get("samples", [])]
    return ModelCardData(
        base_model=facts["backbone"],
        library_name="peft" if facts["has_adapter"] else "transformers",
        pipeline_tag=TASK,
        tags=["t5fusion", "text2text-generation", "transformers", *kinds],
        datasets=[facts["trained_on"]] if facts["trained_on"] else None,
        metrics=["rouge", "chrf"] if "chrf" in measures else None,
        inference=False,  # the Hub's own does not run code of a repository
        widget=samples or None,
        model_name=facts["title"] if results else None,
        eval_results=results or None,
    )


def _broken(marker: re.Match) -> ValueError:
    return ValueError(
        f"the card's marker {marker[0]} has no partner of its own: expected each section once, between its marker and "
        f"the same with a slash. Put back what is missing, or delete the section with both, and it stays away."
    )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:8]


def _read(file: Path) -> dict:
    return read_json(file) if file.exists() else {}
