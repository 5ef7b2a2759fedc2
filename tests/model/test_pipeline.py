"""`T5FusionPipeline` in this process: what it takes, what it returns, and that it writes what the model writes."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from shared_fixtures import make_tokenizer
from transformers import GenerationConfig, pipeline

from t5fusion import DataCollatorWithFusion, T5FusionPipeline, T5FusionProcessor, T5WithFusion
from t5fusion.common.limits import MAX_SOURCE, MAX_TARGET
from t5fusion.finetune import generate_texts, prepare

TEXTS = ["app_config", "a", "settings:b_d", "readme", "c"]
DIM = 8
VECTORS = np.random.default_rng(0).standard_normal((5, DIM)).astype(np.float32)
SHORT = {"max_new_tokens": 6}


@pytest.fixture(scope="module")
def folder(plain_folders, tmp_path_factory):
    """A fused model whose outputs depend on its vectors, saved by `save_pretrained`, and its processor."""
    folder = tmp_path_factory.mktemp("fused")
    model = T5WithFusion(plain_folders["flan"], lexical_dim=DIM)
    model.encoder.fusion.norm.weight.data *= 20
    model.save_pretrained(folder)
    given = {"lexical_encoder": None, "lexical_source": "given"}
    T5FusionProcessor(make_tokenizer(), lexical_dim=DIM, template="Filename: {text}", **given).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def write(folder):
    return pipeline(model=str(folder), trust_remote_code=True, device="cpu")


@pytest.fixture(scope="module")
def expected(folder):
    """The texts of rows with vectors, as `t5fusion generate` makes them."""
    processor = T5FusionProcessor.from_pretrained(folder)
    rows = prepare(TEXTS, None, torch.from_numpy(VECTORS), processor)
    texts = generate_texts(T5WithFusion(folder), rows, processor, **SHORT)
    without = generate_texts(T5WithFusion(folder), prepare(TEXTS, None, None, processor), processor, **SHORT)
    assert len(set(texts)) > 2 and texts != without
    return texts


def texts_of(outputs):
    return [output["generated_text"] for output in outputs]


def rows():
    return [{"text": text, "lexical_embeds": vector, "size": 3} for text, vector in zip(TEXTS, VECTORS, strict=True)]


INPUTS = {
    "texts and vectors": lambda write, **options: write(TEXTS, lexical_embeds=VECTORS, **options),
    "a tuple": lambda write, **options: write(tuple(TEXTS), lexical_embeds=VECTORS.tolist(), **options),
    "rows": lambda write, **options: write(rows(), **options),
    "columns": lambda write, **options: write({"text": TEXTS, "lexical_embeds": VECTORS}, **options),
    "a stream": lambda write, **options: [one for (one,) in write((row for row in rows()), **options)],
    "a data set": lambda write, **options: [one for (one,) in write(Dataset.from_list(rows()), **options)],
    "one by one": lambda write, **options: [write(row, **options)[0] for row in rows()],
    "one text and its vector": lambda write, **options: [
        write(text, lexical_embeds=vector, **options)[0] for text, vector in zip(TEXTS, VECTORS, strict=True)
    ],
}


@pytest.mark.parametrize("form", ["rows", "columns", "slice", "a data set", "one by one"])
def test_a_row_whose_vector_is_null_has_none(write, form):
    vectors = [VECTORS[0].tolist(), None, VECTORS[2].tolist(), None, None]
    nullable = [{"text": text, "lexical_embeds": vector} for text, vector in zip(TEXTS, vectors, strict=True)]
    data = Dataset.from_list(nullable)
    written = {
        "rows": lambda: write(nullable, **SHORT),
        "columns": lambda: write({"text": TEXTS, "lexical_embeds": vectors}, **SHORT),
        "slice": lambda: write(data[:5], **SHORT),
        "a data set": lambda: [one for (one,) in write(data, **SHORT)],
        "one by one": lambda: [write(row, **SHORT)[0] for row in nullable],
    }[form]()
    assert texts_of(written) == texts_of(write(TEXTS, lexical_embeds=vectors, **SHORT))
    assert texts_of(written)[1] == write(TEXTS[1], lexical_embeds=False, **SHORT)[0]["generated_text"]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("inputs", INPUTS)
def test_what_it_takes(write, expected, inputs, batch_size):
    outputs = INPUTS[inputs](write, batch_size=batch_size, **SHORT)
    assert [list(output) for output in outputs] == [["generated_text"]] * len(TEXTS)
    assert texts_of(outputs) == expected


def test_the_shape_of_what_it_returns(write):
    one = write(TEXTS[0], lexical_embeds=VECTORS[0], **SHORT)
    assert [list(output) for output in one] == [["generated_text"]]
    beams = {"num_beams": 3, "num_return_sequences": 2, **SHORT}
    assert len(write(TEXTS[0], lexical_embeds=VECTORS[0], **beams)) == 2
    many = write(TEXTS, lexical_embeds=VECTORS, batch_size=2, **beams)
    assert [len(outputs) for outputs in many] == [2] * len(TEXTS)
    assert texts_of(many[3]) == texts_of(write(TEXTS[3], lexical_embeds=VECTORS[3], **beams))
    assert write([]) == []


def test_rows_of_all_kinds_in_one_batch(write):
    """One vector, several, none; each gets what it gets by itself."""
    mixed = [rows()[0], {"text": "a", "lexical_embeds": VECTORS[:3]}, {"text": "b", "lexical_embeds": VECTORS[:0]}]
    together = write(mixed, batch_size=3, **SHORT)
    assert together == [write(row, **SHORT)[0] for row in mixed]
    without = write(TEXTS, lexical_embeds=False, batch_size=5, **SHORT)
    assert without == [write(text, lexical_embeds=False, **SHORT)[0] for text in TEXTS]
    assert next(iter(write((text for text in TEXTS), lexical_embeds=False, **SHORT))) == without[:1]


def test_options_of_the_start_hold_for_all_calls(folder, write):
    short = pipeline(model=str(folder), trust_remote_code=True, device="cpu", max_new_tokens=2, batch_size=2)
    vectors = {"lexical_embeds": VECTORS}
    assert short(TEXTS, **vectors) == write(TEXTS, max_new_tokens=2, **vectors)
    assert short(TEXTS, max_new_tokens=4, **vectors) == write(TEXTS, max_new_tokens=4, **vectors)
    config = GenerationConfig(max_new_tokens=3, decoder_start_token_id=0, eos_token_id=1, pad_token_id=0)
    assert write(TEXTS, generation_config=config, **vectors) == write(TEXTS, max_new_tokens=3, **vectors)


def test_its_defaults_are_those_of_the_command_line(write, monkeypatch, logged_messages):
    seen = {}
    generate = write.model.generate
    monkeypatch.setattr(write.model, "generate", lambda **given: seen.update(given) or generate(**given))
    long = "a " * (MAX_SOURCE + 9)
    write(long, lexical_embeds=VECTORS[0])
    assert seen["max_new_tokens"] == MAX_TARGET and seen["do_sample"] is False
    assert seen["input_ids"].shape == (1, MAX_SOURCE + 1)  # and the placeholder, which is not counted
    assert any(f"more than {MAX_SOURCE} tokens are cut" in line for line in logged_messages())
    write(long, lexical_embeds=VECTORS[0], max_source=None, max_length=4)
    assert seen["input_ids"].shape[1] > MAX_SOURCE + 9


ERRORS = {
    "a number": (3, "an input of the pipeline is int; expected a string, or a dict"),
    "no text": ({"name": "a", "size": 3}, "is a dict with name, size; expected .*`rename_column"),
    "a number in a list": (["a", 3], "an input of the pipeline is int"),
    "vectors by a different name": ({"text": "a", "vector": VECTORS[0]}, "column `vector` .*'lexical_embeds'"),
    "columns of unequal length": ({"text": ["a", "b"], "lexical_embeds": [VECTORS[0]]}, "columns differ in length"),
    "no vectors": ("a", f"`lexical_embeds=`, {DIM} numbers"),
    "another width": ({"text": "a", "lexical_embeds": VECTORS[0, :3]}, f"vectors of 3 numbers; expected {DIM}"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(write, case):
    inputs, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        write(inputs)


def test_vectors_beside_texts_in_another_number(write):
    with pytest.raises(ValueError, match="`lexical_embeds` has 2 items for 5 texts"):
        write(TEXTS, lexical_embeds=VECTORS[:2])
    with pytest.raises(ValueError, match="cannot be given as an argument for a data set or a generator"):
        write((text for text in TEXTS), lexical_embeds=VECTORS)


def test_over_a_model_in_memory(folder, expected):
    """A `PeftModel` that is still in training mode, and a tokenizer in the place of a processor."""
    peft_model = get_peft_model(T5WithFusion(folder), LoraConfig(task_type="SEQ_2_SEQ_LM", lora_dropout=0.5)).train()
    write = T5FusionPipeline(model=peft_model, processor=T5FusionProcessor.from_pretrained(folder), device="cpu")
    assert texts_of(write(TEXTS, lexical_embeds=VECTORS, batch_size=5, **SHORT)) == expected
    with pytest.raises(ValueError, match="has no processor"):
        T5FusionPipeline(model=peft_model)
    write = T5FusionPipeline(model=T5WithFusion(folder), tokenizer=make_tokenizer(), device="cpu")
    prompts = [f"Filename: {text}" for text in TEXTS]
    assert texts_of(write(prompts, lexical_embeds=VECTORS, **SHORT)) == expected


def test_a_folder_without_a_recipe(folder, plain_folders, tmp_path, run_python, expected):
    """`model.save_pretrained` and `tokenizer.save_pretrained` are enough for own vectors, also without this package."""
    T5WithFusion(folder).save_pretrained(tmp_path / "bare")
    make_tokenizer().save_pretrained(tmp_path / "bare")
    np.save(tmp_path / "vectors.npy", VECTORS)
    code = f"""
    import json, sys
    import numpy as np
    from transformers import pipeline

    write = pipeline(model=sys.argv[1], trust_remote_code=True)
    texts = [f"Filename: {{text}}" for text in {TEXTS}]
    print(json.dumps(write(texts, lexical_embeds=np.load(sys.argv[2]), max_new_tokens=6)))
    write.save_pretrained("again")
    again = pipeline("text2text-generation", model="again", trust_remote_code=True)
    print(json.dumps(again(texts, lexical_embeds=np.load(sys.argv[2]), max_new_tokens=6)))
    assert "t5fusion" not in sys.modules
    """
    out = run_python(code, tmp_path / "bare", tmp_path / "vectors.npy", hidden=True)
    assert [texts_of(json.loads(line)) for line in out.splitlines()] == [expected, expected]


def test_the_config_names_one_pipeline(folder):
    (task, entry), *others = json.loads((folder / "config.json").read_text())["custom_pipelines"].items()
    assert (task, entry["impl"], others) == ("text2text-generation", "pipeline_t5fusion.T5FusionPipeline", [])
    assert (folder / "pipeline_t5fusion.py").exists()
    # A model that was loaded through the pipeline's config saves the same again.
    assert DataCollatorWithFusion(make_tokenizer()).lexical_token_id == T5WithFusion(folder).config.lexical_token_id


# --- rows without text

VECTOR_INPUTS = {
    "vectors": lambda write: write(lexical_embeds=VECTORS, **SHORT),
    "a list of vectors": lambda write: write(lexical_embeds=list(VECTORS), **SHORT),
    "rows": lambda write: write([{"lexical_embeds": vector, "size": 3} for vector in VECTORS], **SHORT),
    "columns": lambda write: write({"lexical_embeds": VECTORS, "size": range(5)}, **SHORT),
    "columns of lists": lambda write: write({"lexical_embeds": VECTORS.tolist()}, **SHORT),
    "a stream": lambda write: [one for (one,) in write(({"lexical_embeds": vector} for vector in VECTORS), **SHORT)],
    "a data set": lambda write: [
        one for (one,) in write(Dataset.from_dict({"lexical_embeds": VECTORS.tolist()}), **SHORT)
    ],
    "one row": lambda write: [write({"lexical_embeds": vector}, **SHORT)[0] for vector in VECTORS],
    "one vector": lambda write: [write(lexical_embeds=vector, **SHORT)[0] for vector in VECTORS],
    "one list of numbers": lambda write: [write(lexical_embeds=vector.tolist(), **SHORT)[0] for vector in VECTORS],
    "texts, which nothing reads": lambda write: write(TEXTS, lexical_embeds=VECTORS, **SHORT),
}


@pytest.fixture(scope="module", params=["", "describe:"])
def write_of_vectors(request, folder):
    given = {"lexical_encoder": None, "lexical_source": "given"}
    processor = T5FusionProcessor(make_tokenizer(), lexical_dim=DIM, template=request.param, **given)
    return T5FusionPipeline(T5WithFusion(folder), processor=processor)


@pytest.mark.parametrize("inputs", VECTOR_INPUTS)
def test_rows_without_text(write_of_vectors, inputs):
    processor, model = write_of_vectors.processor, write_of_vectors.model
    generated = model.generate(**processor(lexical_embeds=VECTORS), **SHORT)
    expected = processor.batch_decode(generated, skip_special_tokens=True)
    assert len(set(expected)) > 2 and texts_of(VECTOR_INPUTS[inputs](write_of_vectors)) == expected


def test_several_kinds_without_text(plain_folders):
    kinds = {"a": 3, "b": 2}
    processor = T5FusionProcessor(
        make_tokenizer(), vectors=kinds, lexical_encoder=None, lexical_source="given", template=""
    )
    write = T5FusionPipeline(T5WithFusion(plain_folders["flan"], vectors=kinds), processor=processor)
    given = {"a": VECTORS[:, :3], "b": VECTORS[:, 3:5]}
    expected = write(["", "", "", "", ""], lexical_embeds=given, **SHORT)
    assert write(lexical_embeds=given, **SHORT) == write({"lexical_embeds": given}, **SHORT) == expected
    one = {name: vectors[0] for name, vectors in given.items()}
    assert write(lexical_embeds=one, **SHORT) == write({"lexical_embeds": one}, **SHORT) == expected[:1]


def test_columns_of_several_kinds(plain_folders, write):
    kinds = {"a": 3, "b": 2}
    processor = T5FusionProcessor(make_tokenizer(), vectors=kinds, lexical_encoder=None, lexical_source="given")
    write_kinds = T5FusionPipeline(T5WithFusion(plain_folders["flan"], vectors=kinds), processor=processor)
    given = {"a": VECTORS[:, :3], "b": VECTORS[:, 3:5]}
    expected = write_kinds(TEXTS, lexical_embeds=given, **SHORT)
    assert write_kinds({"text": TEXTS, "lexical_embeds": given}, **SHORT) == expected
    without = write(TEXTS, lexical_embeds=False, **SHORT)
    assert write({"text": TEXTS, "lexical_embeds": False}, **SHORT) == without


def test_a_model_that_reads_text_needs_it(write):
    for call in (lambda: write(lexical_embeds=VECTORS), lambda: write({"lexical_embeds": VECTORS})):
        with pytest.raises(ValueError, match="an input of the pipeline is .*; expected a string, or a dict with"):
            call()
