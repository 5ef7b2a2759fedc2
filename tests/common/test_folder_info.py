"""`t5fusion info`: what a folder or a repository is, by its JSON files and the headers of its weights."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from author import Author
from hub_server import HubServer

from t5fusion import tiny_t5
from t5fusion.cli.info import _report_lines
from t5fusion.cli.info import _vectors as describe_vectors
from t5fusion.common.folder_info import VectorFacts, folder_info
from t5fusion.common.next_commands import after_info
from t5fusion.common.run_files import RunFiles

TESTS = Path(__file__).parents[1]
SAVED, BUNDLES = TESTS / "model" / "saved_by_0_1", TESTS / "hub_export" / "bundle_by_0_1"
KINDS = [{"name": "a", "dim": 2}, {"name": "b", "dim": 3, "tokens": 2}]
RUN = {
    "training": {
        "options": {"base": "tiny_t5", "epochs": 2.0, "batch_size": 8, "lr": 0.001, "seed": 42},
        "rows": 7164,
        "held_out_rows": 775,
        "trainable_weights": 1_204_608,
        "weights": 7_771_392,
        "seconds": 246.0,
        "history": [{"loss": 4.1}, {"eval_loss": 3.9}, {"loss": 3.8}, {"eval_loss": 3.8}],
        "versions": {"t5fusion": "0.1.0", "torch": "2.13.0"},
    },
    "adapter_config": {
        "peft_type": "LORA",
        "r": 32,
        "lora_alpha": 64,
        "target_modules": ["v", "q"],
        "modules_to_save": ["fusion"],
        "base_model_name_or_path": "T5WithFusion(tiny_t5)",
        "peft_version": "0.21.2",
    },
    "processor_config": {
        "lexical_dim": 384,
        "lexical_encoder": "sentence-transformers/all-MiniLM-L6-v2",
        "lexical_source": "text",
        "normalize": True,
        "template": "describe: {text}",
        "processor_class": "T5FusionProcessor",
    },
}
EVALUATION = {
    "rows": 700,
    "measures": {"true": {"loss": 3.73, "rouge1": 0.216, "rougeL": 0.205, "chrf": 0.174}, "shuffled": {"loss": 4.031}},
    "worth_of_vectors": {"shuffled": {"difference": 0.302, "low": 0.281, "high": 0.322}},
}


@pytest.fixture
def write(tmp_path):
    """`write(training={...}, ...)` writes JSON files into a folder, and returns its path."""

    def files(**contents):
        folder = tmp_path / "runs" / "mine"
        folder.mkdir(parents=True)
        for name, content in contents.items():
            (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return str(folder)

    return files


def test_run_folder(write):
    facts = folder_info(write(**RUN, evaluation=EVALUATION))
    assert (facts.what, facts.kind, facts.base_model, facts.base_commit) == ("run folder", None, "tiny_t5", None)
    assert facts.vectors == [VectorFacts("lexical", "<lexical>", 384)]
    adapter = facts.adapter
    assert (adapter.method, adapter.rank, adapter.alpha) == ("LoRA", 32, 64)
    assert (adapter.target_modules, adapter.modules_to_save) == (["q", "v"], ["fusion"])
    assert facts.trained_share == 1_204_608 / 7_771_392
    assert facts.recipe["template"] == "describe: {text}" and "processor_class" not in facts.recipe
    assert facts.training == {
        "rows": 7164, "held_out_rows": 775, "seconds": 246.0, "epochs": 2.0, "batch_size": 8, "lr": 0.001, "seed": 42,
    }  # fmt: skip
    assert facts.measures == EVALUATION["measures"] and facts.measured_rows == 700
    assert facts.versions == {"t5fusion": "0.1.0", "torch": "2.13.0", "peft": "0.21.2"}
    assert facts.files == 4 and facts.size == sum(file.stat().st_size for file in Path(facts.name).iterdir())


@pytest.mark.parametrize(
    ("base", "kind"),
    [("tiny_t5", " --kind standalone"), ("google/flan-t5-small@" + 40 * "a", "")],
    ids=["tiny_t5", "Hub"],
)
def test_the_next_command_exports_with_the_weights_that_readers_cannot_get(write, base, kind):
    config = RUN["adapter_config"] | {"base_model_name_or_path": f"T5WithFusion({base})"}
    folder = write(adapter_config=config, processor_config=RUN["processor_config"])
    assert after_info(folder_info(folder)) == f"t5fusion export {folder} bundles/{Path(folder).name}{kind}"


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"lexical_source": "text", "lexical_encoder": "me/encoder"}, "'a text'"),
        (
            {"lexical_source": "given", "lexical_encoder": "me/encoder"},
            "--file FILE --text-column COLUMN --lexical-column COLUMN",
        ),
        (
            {"lexical_source": "given", "lexical_encoder": None},
            "--file FILE --text-column COLUMN --vector-column COLUMN",
        ),
        (
            {"lexical_source": "given", "lexical_encoder": None, "vectors": [{"name": "a", "dim": 2}]},
            "--file FILE --text-column COLUMN --vector-column COLUMN",
        ),
        (
            {"lexical_source": "given", "lexical_encoder": None, "vectors": KINDS},
            "--file FILE --text-column COLUMN --vector-column a=COLUMN --vector-column b=COLUMN",
        ),
        (
            {"lexical_source": "given", "lexical_encoder": "me/encoder", "vectors": KINDS},
            "--file FILE --text-column COLUMN --lexical-column COLUMN --vector-column b=COLUMN",
        ),
        (
            {"lexical_source": "text", "lexical_encoder": "me/encoder", "vectors": KINDS},
            "--file FILE --text-column COLUMN --vector-column b=COLUMN",
        ),
    ],
)
def test_the_next_command_for_a_repository_gives_the_vectors_that_the_recipe_needs(write, recipe, words):
    facts = folder_info(write(**{**RUN, "processor_config": RUN["processor_config"] | recipe}))
    facts = replace(facts, commit="a" * 40, name="me/it")
    assert after_info(facts) == f"t5fusion generate me/it {words}"
    assert after_info(facts, "v2") == f"t5fusion generate me/it {words} --revision v2"


def test_without_an_adapter_the_next_command_exports_all_weights(write):
    folder = write(
        training={"options": {"base_model": "google/flan-t5-small"}}, config={"backbone": "google/flan-t5-small"}
    )
    assert RunFiles(folder).export_command.endswith(" --kind standalone")


def test_the_last_loss_of_a_training_without_evaluation(write):
    facts = folder_info(write(**RUN))
    assert facts.measures == {"true": {"loss": 3.8}} and facts.measured_rows == 775


def test_one_screen(write):
    name = write(**RUN, evaluation=EVALUATION)
    lines = _report_lines(folder_info(name))
    assert len(lines) < 24 and all(len(line) <= 80 for line in lines if name not in line)
    text = " ".join(" ".join(lines).split())
    for fact in (
        "a run folder, which training saved",
        "base model tiny_t5 (in this package)",
        "384 numbers each, in the place of <lexical>",
        "LoRA, rank 32, alpha 64 on q, v trained whole beside it: fusion",
        "1,204,608 of 7,771,392 trained (15.5%)",
        'prompt "describe: {text}" vectors made from the text, by sentence-transformers/all-MiniLM-L6-v2, scaled',
        "7,164 rows, epochs: 2, batches of 8, learning rate 0.001, seed 42, 4.1 minutes",
        "on 700 rows loss ROUGE-1 ROUGE-L chrF own vectors 3.730 0.216 0.205 0.174 other rows' vectors 4.031",
        "another row's vector costs +0.302 nats per token (95 % between +0.281 and +0.322)",
        "written by t5fusion 0.1.0, peft 0.21.2, torch 2.13.0",
    ):
        assert fact in text


@pytest.mark.parametrize(
    ("folder", "what", "kind", "width", "trained", "weights"),
    [
        (BUNDLES / "adapter", "bundle", "adapter", 8, 272, None),
        (BUNDLES / "merged", "bundle", "merged", 8, None, 4_360),
        (SAVED / "adapter-trained", "adapter", None, 384, 8_864, None),
        (SAVED / "adapter-wide", "adapter", None, None, 768, None),
        (SAVED / "fused", "fused model", None, 384, None, 24_032),
    ],
)
def test_what_earlier_code_saved(folder, what, kind, width, trained, weights):
    facts = folder_info(str(folder))
    assert (facts.what, facts.kind, facts.trained_weights, facts.weights) == (what, kind, trained, weights)
    assert [each.width for each in facts.vectors] == [width]


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ({"config": {"model_type": "t5_fusion"}}, "  base model  not recorded"),
        (
            {"config": {"model_type": "t5_fusion"}, "t5fusion": {"kind": "merged", "t5fusion": "0.1.0"}},
            "  base model  not named; its weights are in this bundle",
        ),
        (RUN, "  base model  tiny_t5 (in this package)"),
    ],
    ids=["fused model", "merged bundle", "run folder"],
)
def test_the_line_of_the_base_model(write, files, line):
    assert line in _report_lines(folder_info(write(**files)))


@pytest.mark.parametrize("name", ["tiny_t5", tiny_t5.PATH])
def test_a_plain_t5(name):
    facts = folder_info(name)
    assert (facts.what, facts.base_model, facts.vectors, facts.weights) == ("T5", None, [], 6_492_672)


def test_weights_are_counted_as_train_counts_them(tmp_path, save_plain_t5):
    """The share of an adapter without a record is that of `count_weights`, which `train` prints."""
    from peft import get_peft_model

    from t5fusion import T5WithFusion
    from t5fusion.finetune.model import count_weights

    save_plain_t5(tmp_path / "base", d_model=32, num_layers=1)
    model = T5WithFusion(str(tmp_path / "base"), lexical_dim=8)
    adapted = get_peft_model(model, model.lora_config())
    adapted.save_pretrained(tmp_path / "out")
    facts = folder_info(str(tmp_path / "out"))
    assert facts.what == "adapter" and facts.vectors[0].width == 8
    assert (facts.trained_weights, facts.weights) == count_weights(adapted)


@pytest.mark.parametrize(
    ("contents", "complaint"),
    [
        ({}, "holds no model and no adapter; expected what t5fusion writes"),
        ({"config": {"model_type": "bert"}}, "holds a model of type bert; expected"),
        ({"adapter_config": {"base_model_name_or_path": "gpt2", "peft_type": "LORA"}}, "adapter on gpt2, which is no"),
        ({"config": "{"}, "config.json is damaged: it is not valid JSON"),
        (RUN | {"training": "[1]"}, "training.json holds a list; expected an object"),
        (RUN | {"training": {"options": 3}}, "cannot be loaded (AttributeError"),
        (RUN | {"adapter_config": {"r": 3}}, "cannot be loaded (KeyError"),
    ],
    ids=["empty", "bert", "gpt2", "no JSON", "no object", "no options", "no base"],
)  # fmt: skip
def test_damaged_and_foreign_folders_in_one_sentence(write, contents, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)):
        folder_info(write(**contents))


@pytest.mark.parametrize("keep", [5, 200, 4000])
def test_damaged_weights(tmp_path, keep):
    folder = tmp_path / "cut"
    shutil.copytree(SAVED / "adapter-trained", folder)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ValueError, match="adapter_model.safetensors cannot be read"):
        folder_info(str(folder))


def test_a_revision_of_a_folder_is_refused():
    with pytest.raises(ValueError, match="--revision is for a repository"):
        folder_info(str(SAVED / "fused"), "main")


# The package's own __init__ is left out: it decides what a command imports before it parses its arguments.
NOTHING_SLOW = """
import sys, types
package = types.ModuleType("t5fusion")
package.__path__ = [sys.argv[1]]
sys.modules["t5fusion"] = package
from t5fusion.cli.info import info
info(sys.argv[2], as_json=True)
print({"torch", "transformers", "peft", "datasets", "safetensors"} & set(sys.modules), file=sys.stderr)
"""


def test_nothing_slow_is_imported(tmp_path):
    words = [sys.executable, "-c", NOTHING_SLOW, str(TESTS.parent), str(SAVED / "adapter-trained")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "set()\n")
    assert json.loads(done.stdout)["what"] == "adapter"


def test_repository(tmp_path):
    """Only its small files are downloaded, and still its size is known. Later the cache suffices, without the Hub."""
    with HubServer(tokens={"hf_owner": "me"}) as hub:
        hub.add_folder("me/describer", BUNDLES / "adapter")
        commit = hub.repo("me/describer").commits[-1]
        author = Author(hub, tmp_path / "author")
        out, _ = author.t5fusion("info", "me/describer", "--json")
        facts = json.loads(out)
        assert (facts["what"], facts["kind"], facts["name"]) == ("bundle", "adapter", "me/describer")
        assert facts["size"] == sum(map(len, commit.files.values())) and facts["files"] == len(commit.files)
        vectors = {"name": "lexical", "placeholder": "<lexical>", "width": 8, "tokens": 1, "projector": "linear"}
        assert len(facts["commit"]) == 40 and facts["vectors"] == [vectors | {"scale": None}]
        loaded = {path.rpartition("/")[2] for method, path in hub.requests if method == "GET" and "/resolve/" in path}
        assert loaded and all(name.endswith(".json") for name in loaded), loaded
        out, _ = author.t5fusion("info", "me/describer", "--revision", facts["commit"])
        assert facts["commit"] in out
        assert "nothing" in author.refused("info", "me/nothing")
        out, _ = author.t5fusion("info", "me/describer", HF_HUB_OFFLINE="1")
        assert "size        not known" in out


def test_the_next_command_for_a_repository_runs(tmp_path):
    """The vectors of this one are given, so a text alone is not enough."""
    with HubServer(tokens={"hf_owner": "me"}) as hub:
        files = {file.name: file.read_bytes() for part in ("merged", "shared") for file in (BUNDLES / part).iterdir()}
        hub.add_repo("me/describer", files)
        author = Author(hub, tmp_path / "author")
        _, err = author.t5fusion("info", "me/describer")
        program, *words = shlex.split(err.splitlines()[-1].removeprefix("Next: "))
        assert program == "t5fusion" and words.count("COLUMN") == 2 and words.count("FILE") == 1
        rows = tmp_path / "rows.jsonl"
        rows.write_text(json.dumps({"name": "app", "vector": [0.5] * 8}) + "\n")
        values = {"FILE": [str(rows)], "COLUMN": ["name", "vector"]}
        out, _ = author.t5fusion(*(values[word].pop(0) if word in values else word for word in words))
        assert json.loads(out)["name"] == "app"


def test_an_adapter_of_several_kinds_lists_them(tmp_path):
    kinds = [{"name": "item", "dim": 64}, {"name": "image", "dim": 512, "tokens": 8, "projector": "mlp"}]
    kinds.append({"name": "price", "dim": 1, "scale": "log"})
    name = f"T5WithFusion(google/flan-t5-small, {json.dumps({'lexical_dim': 64, 'vectors': kinds})})"
    config = {"base_model_name_or_path": name, "peft_type": "LORA", "r": 4}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    expected = [VectorFacts("item", "<lexical>", 64), VectorFacts("image", "<lexical:image>", 512, 8, "mlp")]
    expected.append(VectorFacts("price", "<lexical:price>", 1, scale="log"))
    facts = folder_info(str(tmp_path))
    assert facts.vectors == expected and json.loads(facts.to_json())["vectors"][0]["name"] == "item"
    assert describe_vectors(expected[0]) == "item: 64 numbers each, in the place of <lexical>"
    price = "price: 1 number each, each dimension scaled logarithmically, in the place of <lexical:price>"
    assert describe_vectors(expected[2]) == price


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (None, None),
        ({"text": "name", "target": "sum", "lexical": None, "vector": "v"}, "text 'name', target 'sum', vectors 'v'"),
        ({"text": "name", "target": "sum", "lexical": "body"}, "text 'name', target 'sum', vectors made from 'body'"),
        ({"text": None, "target": "sum", "vector": {"a": "x", "b": "y"}}, "target 'sum', a vectors 'x', b vectors 'y'"),
    ],
)
def test_the_columns_of_the_training_are_listed(write, columns, words):
    facts = folder_info(write(**RUN | {"training": RUN["training"] | {"columns": columns}}))
    named = {use: column for use, column in (columns or {}).items() if column}
    assert json.loads(facts.to_json())["columns"] == named
    lines = [line.strip() for line in _report_lines(facts) if line.startswith("  columns")]
    assert lines == ([f"columns     {words}"] if words else [])


@pytest.mark.parametrize(("width", "words"), [(1, "1 number each"), (384, "384 numbers each")])
def test_a_width_is_one_number_or_several(width, words):
    assert describe_vectors(VectorFacts("lexical", "<lexical>", width)) == f"{words}, in the place of <lexical>"
