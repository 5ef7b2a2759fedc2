"""ONNX graphs of a bundle: their outputs compared with torch, their errors, and pushing them to the Hub."""

import itertools
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from author import Author
from hub_server import HubServer
from peft import PrefixTuningConfig, TaskType, get_peft_model
from transformers import AutoTokenizer

from t5fusion import T5FusionProcessor, T5WithFusion, tiny_t5
from t5fusion.demo.harvest import harvest, standard_library
from t5fusion.hub_export import onnx_graphs
from t5fusion.hub_export.bundle import export
from t5fusion.hub_export.onnx_graphs import DATA, DECODER, ENCODER, LOGITS, write_graphs
from t5fusion.hub_export.onnx_model import OnnxT5WithFusion, check_graphs
from t5fusion.hub_export.reference import write_reference
from t5fusion.hub_export.verification import run_graphs
from t5fusion.processing_t5fusion import MINILM

LINES = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs" / "onnx.md").read_text(), re.DOTALL)
WITHOUT_TORCH = "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"


def save_tuned(base, folder):
    """Save a bare run folder: a random adapter, with a fusion layer, and the tokenizer."""
    model = T5WithFusion(base)
    torch.manual_seed(0)
    tuned = get_peft_model(model, model.lora_config(r=4))
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:  # PEFT initialises it with zeros.
            torch.nn.init.normal_(weight, std=0.02)
        elif weight.requires_grad and "projection.weight" in name:
            weight.data += torch.randn_like(weight) * weight.std()
    tuned.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def random_vectors(*shape, seed=0):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def near(logits, expected):
    """Return whether logits agree within the documented bound, 1e-4 of the largest one."""
    return (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


def one_thread():
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # onnxruntime would also print the errors that it raises
    return options


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """tiny_t5 in fp32, with a random adapter."""
    room = tmp_path_factory.mktemp("tiny")
    T5WithFusion(tiny_t5.PATH, dtype=torch.float32).save_pretrained(room / "base")
    AutoTokenizer.from_pretrained(tiny_t5.PATH).save_pretrained(room / "base")
    bare, recipe = save_tuned(room / "base", room / "bare"), {"lexical_encoder": MINILM}
    return export(bare, room / "bundle", "standalone", recipe=recipe, format="onnx")


@pytest.fixture(scope="module")
def by_torch(bundle):
    return T5WithFusion(bundle).eval()


@pytest.fixture(scope="module")
def by_onnx(bundle):
    return OnnxT5WithFusion.from_pretrained(bundle, one_thread())


@torch.no_grad()
def test_200_rows_have_the_outputs_of_torch(bundle, by_torch, by_onnx):
    """Names in the standard library, with no vector, one, two or three."""
    rows = itertools.islice(harvest(standard_library()), 400)  # reading the whole library takes seconds
    names = list(dict.fromkeys(row.name for row in rows))[:200]
    processor = T5FusionProcessor.from_pretrained(bundle)
    rows = processor(names, lexical_embeds=[random_vectors(i % 4, 384, seed=i) for i in range(200)])
    assert len(names) == 200 and rows["lexical_embeds"].shape == (200, 3, 384)
    for beams in (1, 4):
        options = {"max_new_tokens": 16, "num_beams": beams, "do_sample": False}
        texts = [
            processor.batch_decode(model.generate(**rows, **options), skip_special_tokens=True)
            for model in (by_torch, by_onnx)
        ]
        assert texts[0] == texts[1] and len(set(texts[0])) > 100
    written = processor.tokenizer(texts[0], padding=True, return_tensors="pt").input_ids
    expected = by_torch(**rows, decoder_input_ids=written).logits
    assert near(by_onnx(**rows, decoder_input_ids=written).logits, expected)
    rows["lexical_embeds"] = rows["lexical_embeds"].roll(4, 0)  # the vectors of another row with as many
    assert not near(by_onnx(**rows, decoder_input_ids=written).logits, expected)


@torch.no_grad()
def test_inputs_of_any_size_have_the_outputs_of_torch(by_torch, by_onnx):
    """Sizes of the batch, the text, the vectors and the new tokens, with and without the cache."""
    token_id, numbers = by_torch.config.lexical_token_id, torch.Generator().manual_seed(0)
    for batch, length, vectors, new in [(1, 1, 0, 1), (1, 2, 1, 1), (1, 6, 1, 4), (3, 8, 3, 40), (2, 150, 2, 7)]:
        ids = torch.randint(3, 6000, (batch, length), generator=numbers)
        ids[:, :vectors] = token_id
        ids[1:, length - 1 :] = 0
        lexical = random_vectors(batch, vectors, 384)
        if batch == 3:  # a row with fewer vectors than the others
            ids[1, 0], lexical[1, -1] = 5, 0
        rows = {"input_ids": ids, "attention_mask": (ids != 0).long(), "lexical_embeds": lexical if vectors else None}
        written = torch.randint(3, 6000, (batch, new), generator=numbers)
        expected = by_torch(**rows, decoder_input_ids=written).logits
        at_once = by_onnx(**rows, decoder_input_ids=written)
        assert near(at_once.logits, expected)
        assert at_once.past_key_values.get_seq_length() == new
        encoded = by_onnx.encoder(**rows)
        head = by_onnx(
            attention_mask=rows["attention_mask"], encoder_outputs=encoded, decoder_input_ids=written[:, : new // 2 + 1]
        )
        if new > 1:
            rest = by_onnx(
                attention_mask=rows["attention_mask"], encoder_outputs=encoded, past_key_values=head.past_key_values,
                decoder_input_ids=written[:, new // 2 + 1 :],
            )  # fmt: skip
            assert near(torch.cat([head.logits, rest.logits], 1), expected)


def test_options_of_generate(by_torch, by_onnx):
    ids = torch.tensor([[by_torch.config.lexical_token_id, 300, 400, 1]])
    rows = {"input_ids": ids, "lexical_embeds": random_vectors(1, 384)}
    for options in (
        {"do_sample": True, "num_return_sequences": 3},
        {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 2.0},
        {"use_cache": False},
    ):
        written = []
        for model in (by_torch, by_onnx):
            torch.manual_seed(0)
            written.append(model.generate(**rows, **options, max_new_tokens=8))
        assert written[0].equal(written[1]) and written[0].shape[1] > 3
    with pytest.raises(ValueError, match="decoder_attention_mask"):  # The graph has no input for it.
        by_onnx.generate(**rows, decoder_attention_mask=torch.ones(1, 1))
    with pytest.raises(ValueError, match="Ask the model itself"):
        by_onnx.generate(**rows, output_attentions=True, return_dict_in_generate=True)


def test_vectors_without_placeholders_are_refused(by_onnx):
    """The class raises an error in one sentence. The bare graph fails too: it never ignores vectors silently."""
    token_id = by_onnx.config.lexical_token_id
    for ids, vectors, words in (
        ([[5, 6, 7, 1]], 1, "no row holds a placeholder"),
        ([[token_id, 6, 7, 1]], 2, "1 placeholder <lexical> (id 6128) for 2 vectors"),
        ([[token_id, token_id, 7, 1]], 1, "2 placeholders <lexical> (id 6128) for 1 vector"),
        ([[token_id, 6, 7, 1]], 0, "no vectors were given"),
    ):
        rows = {"input_ids": torch.tensor(ids), "lexical_embeds": random_vectors(1, vectors, 384)}
        with pytest.raises(ValueError, match=re.escape(words)):
            by_onnx.generate(**rows)
        arrays = {name: value.numpy() for name, value in rows.items()}
        with pytest.raises(Exception, match="GatherElements"):
            by_onnx.encoder.session.run(None, arrays | {"attention_mask": np.ones_like(arrays["input_ids"])})


def test_the_graphs_are_valid_and_name_no_local_files(bundle):
    """The checker accepts the graphs. The names of inputs and outputs are fixed."""
    for name, inputs in ((ENCODER, 3), (DECODER, 2 + 16)):
        onnx.checker.check_model(bundle / name, full_check=True)
        model = onnx.load(bundle / name)
        graph = model.graph
        assert len(graph.input) == inputs
        for part in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
            assert not part.metadata_props and not part.doc_string
        for weight in graph.initializer:  # The bytes of numbers may spell a word by chance.
            weight.ClearField("raw_data")
        for word in (str(bundle.parent), str(Path.home()), str(Path(__file__).parents[2]), 'File "', ".py"):
            assert word.encode() not in model.SerializeToString()
    assert [item.name for item in graph.input][:6] == [
        "input_ids", "encoder_attention_mask", "past_key_values.0.decoder.key", "past_key_values.0.decoder.value",
        "past_key_values.0.encoder.key", "past_key_values.0.encoder.value",
    ]  # fmt: skip
    sizes = [[size.dim_param or size.dim_value for size in item.type.tensor_type.shape.dim] for item in graph.output]
    assert sizes[0] == ["batch", "new", 6144] and sizes[1] == ["batch", 6, "past + new", 32]


def test_the_documented_lines_of_a_reader_run(bundle, by_torch, tmp_path, monkeypatch, capsys):
    shutil.copytree(bundle, tmp_path / "me" / "describer")
    monkeypatch.chdir(tmp_path)
    exec(LINES[0], {})
    processor = T5FusionProcessor.from_pretrained(bundle)
    written = by_torch.generate(**processor(["app_config", "read_settings"]), num_beams=4, max_new_tokens=20)
    assert capsys.readouterr().out == f"{processor.batch_decode(written, skip_special_tokens=True)}\n"


# --- the command line, and the Hub


@pytest.fixture(scope="module")
def author(tmp_path_factory):
    with HubServer(tokens={"hf_owner": "me"}) as hub:
        author = Author(hub, tmp_path_factory.mktemp("author"), busy=True)
        yield author
        author.close()


@pytest.fixture(scope="module")
def small(author, save_plain_t5):
    """A bundle of a small random T5, which the command wrote."""
    shape = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_layers": 1}
    bare = save_tuned(save_plain_t5(author.home / "plain", **shape), author.home / "bare")
    printed, _ = author.t5fusion("export", bare, "small", "--kind", "standalone", "--format", "onnx")
    assert "standalone and ONNX graphs" in printed
    return author.home / "small"


def test_equal_inputs_give_equal_bytes(small, tmp_path):
    """Another process, with another folder and another hash seed, writes the same files."""
    again = export(small.parent / "bare", tmp_path / "again", "standalone", format="onnx")
    assert {ENCODER, DECODER, LOGITS} < {file.name for file in again.iterdir()}
    for file in small.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes(), file.name


def test_pushed_and_read_without_torch(author, small):
    """The report has a line about the graphs, all files are pushed, and the documented lines run without torch."""
    _, told = author.t5fusion("push", small, "me/describer")
    assert "ok ONNX graphs: within" in told
    there = author.hub.repo("me/describer").files()
    assert all(there[name] == (small / name).read_bytes() for name in (ENCODER, DECODER, LOGITS))
    assert "- onnx" in there["README.md"].decode()
    printed, _ = author.python(WITHOUT_TORCH + LINES[1])
    vector = np.random.default_rng(0).standard_normal((1, 384), dtype=np.float32)
    processor, model = T5FusionProcessor.from_pretrained(small), T5WithFusion(small).eval()
    rows = processor(["app_config"], lexical_embeds=[vector / np.linalg.norm(vector)])
    (text,) = processor.batch_decode(model.generate(**rows, max_new_tokens=64), skip_special_tokens=True)
    assert printed == f"{text}\n" and text


def test_graphs_of_another_model_are_detected(small, tmp_path):
    copy = Path(shutil.copytree(small, tmp_path / "copy"))
    assert run_graphs(copy)[0] == "ok"
    model = onnx.load(copy / DECODER)
    weight = max(model.graph.initializer, key=lambda weight: len(weight.raw_data))
    weight.raw_data = (onnx.numpy_helper.to_array(weight) * np.float32(1.1)).tobytes()
    onnx.save(model, copy / DECODER)
    mark, sentence = run_graphs(copy)
    assert mark == "NO" and "Weights or code differ from the export" in sentence
    (copy / DECODER).unlink()
    mark, sentence = run_graphs(copy)
    assert mark == "NO" and f"holds no {DECODER}" in sentence


def test_errors_name_a_missing_package(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    mark, sentence = run_graphs(small)
    assert mark == "--" and "onnxruntime" in sentence and "'t5fusion[onnx]'" in sentence
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=re.escape("need onnxscript: `pip install 't5fusion[onnx]'`.")):
        export(small.parent / "bare", tmp_path / "bundle", "standalone", format="onnx")
    assert not (tmp_path / "bundle").exists()


def test_a_model_in_half_precision_with_large_weights(save_plain_t5, tmp_path, monkeypatch):
    """The model is in bf16, its head is tied, its encoder is deeper than its decoder, and its weights are in files."""
    save_plain_t5(tmp_path / "plain", feed_forward_proj="relu", num_layers=2, num_decoder_layers=1)
    model = T5WithFusion(tmp_path / "plain", dtype=torch.bfloat16)
    folder = tmp_path / "bundle"
    model.save_pretrained(folder)
    write_reference(folder, model, T5FusionProcessor(AutoTokenizer.from_pretrained(tmp_path / "plain")))
    monkeypatch.setattr(onnx_graphs, "MAX_WEIGHTS", 0)
    write_graphs(folder, model)
    assert "within" in check_graphs(folder)
    assert (folder / f"{DECODER}{DATA}").stat().st_size > (folder / DECODER).stat().st_size / 2
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    prefix = PrefixTuningConfig(task_type=TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=2)
    with pytest.raises(ValueError, match="PREFIX_TUNING adapter .* cannot be merged"):
        write_graphs(folder, get_peft_model(model, prefix))
