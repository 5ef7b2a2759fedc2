"""A model that reads several kinds of vectors, each with its width, its number of tokens and its projector."""

import copy
import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSeq2SeqLM, Trainer, TrainingArguments

from t5fusion import DataCollatorWithFusion, T5FusionConfig, T5FusionProcessor, T5WithFusion, VectorKind

VECTORS = {"item": 5, "user": {"dim": 3, "tokens": 2}, "image": VectorKind(7, tokens=3, projector="mlp", hidden=6)}
TEXTS = ["app", "settings of it", "a_b", "user"]


def vectors_of(kinds, rows=4, seed=0):
    """Return a random unit vector of each kind for each row, float32 (rows, dim)."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.nn.functional.normalize(torch.randn(rows, kind.dim, generator=generator), dim=-1)
        for name, kind in kinds.items()
    }


def processor_for(folder, vectors=VECTORS):
    return T5FusionProcessor(str(folder), vectors=vectors, lexical_encoder=None, lexical_source="given")


@pytest.fixture
def model(plain_folders):
    """A fused model that reads three kinds of vectors, in evaluation mode."""
    return T5WithFusion(str(plain_folders["flan"]), vectors=VECTORS).eval()


@pytest.fixture
def processor(plain_folders):
    return processor_for(plain_folders["flan"])


@pytest.fixture
def batch(processor):
    return dict(processor(TEXTS, lexical_embeds=vectors_of(processor.kinds), text_target=TEXTS))


# --- the config


def test_one_plain_kind_called_lexical_is_the_model_without_kinds(plain_folders):
    folder = str(plain_folders["flan"])
    named, plain = (
        T5WithFusion(folder, vectors={"lexical": VectorKind(6, scale=None)}),
        T5WithFusion(folder, lexical_dim=6),
    )
    assert named.config.to_dict() == plain.config.to_dict() and named.name_or_path == plain.name_or_path
    assert "vectors" not in named.config.to_dict()
    for name, weight in plain.state_dict().items():
        assert torch.equal(named.state_dict()[name], weight)


def test_a_saved_config_keeps_the_order_of_the_kinds(tmp_path):
    kinds = {"z": 3, "a": VectorKind(4, tokens=2), "m": 5}
    config = T5FusionConfig(vectors=kinds, vocab_size=40)
    config.save_pretrained(tmp_path)
    saved = T5FusionConfig.from_pretrained(tmp_path)
    assert list(saved.kinds.items()) == [("z", VectorKind(3)), ("a", VectorKind(4, tokens=2)), ("m", VectorKind(5))]
    assert saved.placeholder_ids == {"z": 40, "a": 41, "m": 42} and saved.lexical_dim == 3


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ({}, "expected a width for each kind"),
        (64, "expected a width for each kind"),
        ({"item": 0}, "kind 'item' in `vectors`: `dim` is 0; expected a positive integer"),
        ({"item": "64"}, "kind 'item' in `vectors`: `dim` is '64'"),
        ({"item": {"dim": 4, "tokens": 0}}, "`tokens` is 0"),
        ({"item": {"dim": 4, "projector": "conv"}}, "`projector` is 'conv'; expected 'linear' or 'mlp'"),
        ({"item": {"dim": 4, "hidden": 3}}, "they need `projector='mlp'`"),
        ({"item": {"dim": 4, "projector": "mlp", "dropout": 1}}, "`dropout` is 1; expected a number from 0 to below 1"),
        ({"item": {"tokens": 4}}, "kind 'item' in `vectors`: it has no `dim`; expected `dim`, its width"),
        ({"item": {"dim": 2, "widths": 4}}, "has the fields 'dim', 'widths'; expected `dim`, .* optionally `tokens`"),
        ({"my item": 4}, "names a kind 'my item'; expected ASCII letters"),
    ],
)
def test_kinds_that_are_refused(vectors, message):
    with pytest.raises(ValueError, match=message):
        T5FusionConfig(vectors=vectors)


def test_a_width_that_contradicts_the_first_kind_is_refused(plain_folders):
    with pytest.raises(ValueError, match="`lexical_dim` is 4, but the first kind in `vectors`, 'item', is 5 wide"):
        T5FusionConfig(lexical_dim=4, vectors={"item": 5})
    with pytest.raises(ValueError, match="`lexical_dim` is 4, but the first kind in `vectors` is 5 wide"):
        T5FusionProcessor(str(plain_folders["flan"]), lexical_dim=4, vectors={"item": 5})


# --- what it computes


def test_each_vector_takes_the_places_of_its_placeholders(model):
    first = model.config.lexical_token_id
    vectors = vectors_of(model.config.kinds, rows=1)
    vectors["user"] = torch.stack([vectors["user"], -vectors["user"]], dim=1)
    # item at 1; the tokens of the two users at 0, 2 and 5, 6; those of the image at 3, 7, 8.
    ids = torch.tensor([[first + 1, first, first + 1, first + 2, 9, first + 1, first + 1, first + 2, first + 2, 1]])
    embedded = model.encoder.embed(ids, lexical_embeds=vectors)
    fusion = model.encoder.fusion
    expected = model.shared(ids.clamp(max=20))
    expected[0, 1] = fusion(vectors["item"])[0]
    expected[0, [0, 2]], expected[0, [5, 6]] = (
        fusion(vectors["user"][:, 0], "user"),
        fusion(vectors["user"][:, 1], "user"),
    )
    expected[0, [3, 7, 8]] = fusion(vectors["image"], "image")
    torch.testing.assert_close(embedded, expected)


def test_an_mlp_is_linear_gelu_linear_and_the_norm(model):
    projector = model.encoder.fusion.projector("image")
    first, last = projector.projection[0], projector.projection[-1]
    x = torch.randn(2, 7)
    hidden = torch.nn.functional.gelu(x @ first.weight.T + first.bias)
    tokens = (hidden @ last.weight.T + last.bias).view(6, -1)
    expected = projector.norm.weight * tokens * torch.rsqrt(tokens.square().mean(-1, keepdim=True) + 1e-6)
    torch.testing.assert_close(projector(x), expected)


def test_rows_may_have_any_number_of_vectors_of_any_kind(model, processor):
    """A row gives the same logits alone and in a batch with rows that have other vectors."""
    vectors = vectors_of(model.config.kinds)
    given = [
        {"item": vectors["item"][0], "image": vectors["image"][0]},
        {"user": vectors["user"][:3]},
        {},
        {name: of_kind[3] for name, of_kind in vectors.items()},
    ]
    labels = {"decoder_input_ids": torch.zeros(1, 1, dtype=torch.int64)}
    together = processor(TEXTS, lexical_embeds=given)
    logits = model(**together, decoder_input_ids=labels["decoder_input_ids"].expand(4, 1)).logits
    for row, (text, own) in enumerate(zip(TEXTS, given, strict=True)):
        alone = processor([text], lexical_embeds=[own])
        torch.testing.assert_close(logits[row], model(**alone, **labels).logits[0], rtol=1e-4, atol=1e-4)
    plain = model(input_ids=processor.tokenizer([TEXTS[2]], return_tensors="pt").input_ids, **labels).logits
    torch.testing.assert_close(logits[2], plain[0], rtol=1e-4, atol=1e-4)


def test_every_kind_changes_the_output(model, batch):
    before = model(**batch).loss
    for name, vectors in batch["lexical_embeds"].items():
        changed = batch | {"lexical_embeds": batch["lexical_embeds"] | {name: vectors.roll(1, 0)}}
        assert model(**changed).loss != before, name


def test_generation_reads_all_kinds(model, batch):
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    beams = model.generate(**inputs, num_beams=3, max_new_tokens=4)
    for row in range(len(TEXTS)):
        own = {name: of_kind[row : row + 1] for name, of_kind in batch["lexical_embeds"].items()}
        one = {name: value[row : row + 1] for name, value in inputs.items() if name != "lexical_embeds"}
        alone = model.generate(**one, lexical_embeds=own, num_beams=3, max_new_tokens=4)
        assert beams[row, : alone.shape[1]].tolist() == alone[0].tolist()


@pytest.mark.parametrize("option", [{"encoder_repetition_penalty": 2.0}, {"encoder_no_repeat_ngram_size": 2}])
def test_penalties_on_the_input_leave_placeholders_out(plain_folders, option):
    """Placeholders of all kinds lie past the table here, so they have no logit to look up."""
    rows = T5WithFusion(str(plain_folders["flan"])).config.vocab_size
    model = T5WithFusion(str(plain_folders["flan"]), vectors=VECTORS, lexical_token_id=rows).eval()
    ids = torch.tensor([[rows, rows + 1, rows + 1, 5, 1]])
    vectors = {name: of_kind for name, of_kind in vectors_of(model.config.kinds, rows=1).items() if name != "image"}
    written = model.generate(input_ids=ids, lexical_embeds=vectors, max_new_tokens=3, **option)
    assert written.shape[1] <= 4


def test_every_projector_gets_a_gradient_also_without_vectors(model, processor):
    model(**processor(TEXTS, lexical_embeds=False, text_target=TEXTS)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.encoder.fusion.parameters())


def test_vectors_can_be_shown_by_their_embeddings(plain_folders):
    """`inputs_embeds` show placeholders of every kind that have rows in the embedding table."""
    model = T5WithFusion(str(plain_folders["flan"]), vectors={"a": 3, "b": {"dim": 4, "tokens": 2}}).eval()
    model.resize_token_embeddings(model.config.lexical_token_id + 2, mean_resizing=False)
    first = model.config.lexical_token_id
    ids, vectors = torch.tensor([[first + 1, 5, first + 1, first]]), vectors_of(model.config.kinds, rows=1)
    by_embeds = model.encoder.embed(inputs_embeds=model.shared(ids), lexical_embeds=vectors)
    assert torch.equal(by_embeds, model.encoder.embed(ids, lexical_embeds=vectors))


# --- errors


def test_a_tensor_for_several_kinds_is_refused(model, batch):
    batch["lexical_embeds"] = batch["lexical_embeds"]["item"]
    with pytest.raises(ValueError, match="one tensor, and the model reads several kinds of vectors: 'item', 'user'"):
        model(**batch)


def test_an_unknown_kind_is_refused(model, processor, batch):
    batch["lexical_embeds"]["sound"] = torch.ones(4, 2)
    with pytest.raises(ValueError, match="has the kind 'sound'; expected 'item', 'user', 'image'"):
        model(**batch)
    with pytest.raises(ValueError, match="`lexical_embeds` names the kind 'sound'; expected 'item', 'user', 'image'"):
        processor(TEXTS, lexical_embeds={"sound": torch.ones(4, 2)})
    with pytest.raises(ValueError, match="row 1 of the batch, `lexical_embeds`: names the kind 'sound'; expected"):
        processor(TEXTS, lexical_embeds=[None, {"sound": torch.ones(2)}, None, None])


def test_errors_name_the_kind(model, processor, batch):
    wide = batch | {"lexical_embeds": batch["lexical_embeds"] | {"user": torch.ones(4, 9)}}
    with pytest.raises(
        ValueError, match=r"`lexical_embeds\['user'\]` are 9 numbers wide; expected 3 \(`config.vectors`\)"
    ):
        model(**wide)
    with pytest.raises(
        ValueError, match=r"row 1 of the batch, `lexical_embeds\['user'\]`: vectors of 2 numbers; expected 3"
    ):
        processor(TEXTS, lexical_embeds={"user": [torch.ones(3), torch.ones(2), None, None]})
    bad = torch.ones(4, 3)
    bad[2, 1] = torch.nan
    with pytest.raises(ValueError, match=r"row 2 of the batch, `lexical_embeds\['user'\]`: 1 number is NaN"):
        processor(TEXTS, lexical_embeds={"user": bad})


@pytest.mark.parametrize("change", [1, -1])
def test_a_placeholder_too_many_or_too_few_is_refused(model, batch, change):
    ids, user = batch["input_ids"], model.config.placeholder_ids["user"]
    row_ids = ids[1]
    row_ids[row_ids == user] = torch.tensor([user, 5 if change < 0 else user])
    if change > 0:
        row_ids[-1] = user
    count = 2 + change
    match = f"row 1 holds {count} placeholders? <lexical:user> \\(id {user}\\) for 1 vector; expected 2 placeholders"
    with pytest.raises(ValueError, match=match):
        model(**batch)


def test_a_kind_without_placeholders_is_refused(model, batch):
    batch["input_ids"][batch["input_ids"] == model.config.placeholder_ids["image"]] = 7
    with pytest.raises(ValueError, match="no row holds a placeholder <lexical:image>"):
        model(**batch)


def test_vectors_of_one_kind_need_a_dict_in_rows(processor):
    with pytest.raises(ValueError, match="of type Tensor; expected a dict of vectors by kind: 'item', 'user', 'image'"):
        processor(TEXTS, lexical_embeds=torch.ones(4, 5))


# --- the closed-form start


def test_fit_fusion_starts_every_kind(plain_folders, capsys):
    vectors = {"word": 6, "pair": {"dim": 6, "tokens": 2}, "deep": {"dim": 6, "projector": "mlp", "hidden": 64}}
    model = T5WithFusion(str(plain_folders["flan"]), vectors=vectors)
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, 6, (400, 2), generator=generator)
    one_hot = torch.nn.functional.one_hot(words, 6).float()
    rows = [
        {"labels": [*(10 + pair).tolist(), 1], "lexical_embeds": dict.fromkeys(vectors, both.sum(0))}
        for pair, both in zip(words, one_hot, strict=True)
    ]
    assert model.fit_fusion(rows) > 0.9
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fit_fusion")]
    assert [line.split(" vectors")[0] for line in lines] == [f"fit_fusion: the {name}" for name in vectors]
    # The first token of a vector of two reads like the first word of the target, if that word is known.
    model.eval()
    projected = model.encoder.fusion(torch.eye(6)[2:3] * 2, "word")
    table = torch.nn.functional.normalize(model.shared.weight[10:16], dim=-1)
    assert int((table @ projected[0]).argmax()) == 2


def test_fit_fusion_predicts_a_part_of_the_target_with_each_token(plain_folders):
    model = T5WithFusion(str(plain_folders["flan"]), vectors={"pair": VectorKind(12, tokens=2, scale=None)}).eval()
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, 6, (400, 2), generator=generator)
    vectors = torch.nn.functional.one_hot(words, 6).float().flatten(1)
    rows = [
        {"labels": [*(10 + pair).tolist(), 1], "lexical_embeds": vector}
        for pair, vector in zip(words, vectors, strict=True)
    ]
    assert model.fit_fusion(rows) > 0.9
    table = torch.nn.functional.normalize(model.shared.weight[10:16], dim=-1)
    tokens = model.encoder.fusion(vectors[:50].unsqueeze(1))  # (50, 2, d_model)
    assert torch.equal((tokens @ table.T).argmax(-1), words[:50])


def test_a_kind_that_says_nothing_stays_as_it_was(plain_folders, capsys):
    model = T5WithFusion(str(plain_folders["flan"]), vectors={"good": 6, "noise": 6})
    before = model.encoder.fusion.projector("noise").last_layer.weight.clone()
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, 6, (400,), generator=generator)
    noise = torch.randn(400, 6, generator=generator)
    one_hot = torch.nn.functional.one_hot(words, 6).float()
    rows = [
        {"labels": [10 + int(word), 1], "lexical_embeds": {"good": good, "noise": other}}
        for word, good, other in zip(words, one_hot, noise, strict=True)
    ]
    model.fit_fusion(rows)
    assert torch.equal(model.encoder.fusion.projector("noise").last_layer.weight, before)
    assert "the noise vectors of 400 rows explain nothing of" in capsys.readouterr().err


# --- PEFT, the Trainer, saving and loading


def train(model, processor, folder, steps=3):
    rows = Dataset.from_list(processor.rows(TEXTS * 4, TEXTS * 4, lexical_embeds=vectors_of(processor.kinds, rows=16)))
    arguments = TrainingArguments(folder, max_steps=steps, learning_rate=1e-2, report_to=[], use_cpu=True)
    Trainer(model, arguments, DataCollatorWithFusion(processor), rows).train()


@pytest.fixture
def trained(model, processor, tmp_path):
    """A folder with an adapter that was trained with the Trainer on three kinds, and the logits that it gives."""
    before = copy.deepcopy(model.encoder.fusion.state_dict())
    peft_model = get_peft_model(model, LoraConfig(r=2, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM"))
    train(peft_model, processor, tmp_path / "out")
    fusion = model.fusion_to_fit()
    assert all(not torch.equal(weight, before[name]) for name, weight in fusion.state_dict().items())
    peft_model.save_pretrained(tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", peft_model.eval()


def test_an_adapter_says_all_that_a_reload_needs(trained, plain_folders, batch):
    folder, peft_model = trained
    expected = peft_model(**batch).logits
    assert torch.equal(T5WithFusion.from_pretrained(folder)(**batch).logits, expected)
    base = T5WithFusion(str(plain_folders["flan"]), vectors=VECTORS)
    assert torch.equal(PeftModel.from_pretrained(base, folder).eval()(**batch).logits, expected)
    processor = T5FusionProcessor.from_pretrained(folder)
    again = processor(TEXTS, lexical_embeds=batch["lexical_embeds"], text_target=TEXTS)
    assert torch.equal(again["input_ids"], batch["input_ids"])
    assert list(processor.kinds) == list(VECTORS)


def test_an_adapter_without_a_processor_says_its_kinds(trained):
    folder, _ = trained
    (folder / "processor_config.json").unlink()
    processor = T5FusionProcessor.from_pretrained(folder)
    assert processor.kinds == T5WithFusion.from_pretrained(folder).config.kinds


def test_an_adapter_on_other_kinds_is_refused(trained, plain_folders):
    folder, _ = trained
    other = T5WithFusion(str(plain_folders["flan"]), vectors=dict(reversed(VECTORS.items())))
    with pytest.raises(ValueError, match="the adapter was trained on a model with `"):
        PeftModel.from_pretrained(other, folder)


def test_a_whole_model_reloads(model, processor, batch, tmp_path):
    train(model, processor, tmp_path / "out")
    model.eval().save_pretrained(tmp_path / "whole")
    expected = model(**batch).logits
    for auto in (T5WithFusion, AutoModelForSeq2SeqLM):
        assert torch.equal(auto.from_pretrained(tmp_path / "whole").eval()(**batch).logits, expected)
    saved = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert [kind["name"] for kind in saved["vectors"]] == list(VECTORS)


def test_a_saved_model_loads_without_the_package(model, processor, batch, tmp_path, run_python):
    model.save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    loss = run_python(
        """
        import sys, torch
        from transformers import AutoModelForSeq2SeqLM, AutoProcessor
        torch.set_num_threads(1)
        model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
        processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
        torch.manual_seed(0)
        vectors = {name: torch.randn(2, kind.dim) for name, kind in processor.kinds.items()}
        print(repr(model(**processor(["app", "user"], lexical_embeds=vectors, text_target=["a", "b"])).loss.item()))
        """,
        tmp_path / "whole",
        hidden=True,
    )
    torch.manual_seed(0)
    vectors = {name: torch.randn(2, kind.dim) for name, kind in processor.kinds.items()}
    expected = model(**processor(["app", "user"], lexical_embeds=vectors, text_target=["a", "b"])).loss.item()
    assert float(loss) == expected


def test_an_mlp_that_another_layer_replaces_is_not_saved(model, tmp_path):
    model.encoder.fusion.projector("image").projection[0] = torch.nn.Linear(7, 9)
    with pytest.raises(ValueError, match="the fusion layer holds"):
        model.save_pretrained(tmp_path)


def test_an_exported_program_reads_all_kinds(model, batch):
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "lexical_embeds", "labels")}
    program = torch.export.export(model, (), inputs | {"use_cache": False}, strict=False)
    exported = program.module()(**inputs, use_cache=False).logits
    torch.testing.assert_close(exported, model(**inputs).logits)


# --- the collator


def test_a_batch_moves_with_all_its_vectors(processor):
    batch = processor(TEXTS, lexical_embeds=vectors_of(processor.kinds)).to("meta")
    assert {tensor.device.type for tensor in (*batch["lexical_embeds"].values(), batch["input_ids"])} == {"meta"}


def test_rows_from_a_dataset_give_the_batch_of_the_processor(processor):
    vectors = vectors_of(processor.kinds)
    given = {"item": list(vectors["item"]), "user": [vectors["user"][:2], None, vectors["user"][1], None]}
    rows = Dataset.from_list(processor.rows(TEXTS, TEXTS, lexical_embeds=given))
    batch, expected = DataCollatorWithFusion(processor)(list(rows)), processor(TEXTS, None, given, TEXTS)
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert batch["lexical_embeds"].keys() == expected["lexical_embeds"].keys() == {"item", "user"}
    for name, of_kind in expected["lexical_embeds"].items():
        assert torch.equal(batch["lexical_embeds"][name], of_kind)


def test_packed_rows_of_several_kinds_train_as_they_do_alone(model, processor):
    """Rows that share a sequence keep their own vectors, also if some of them lack a kind."""
    vectors = vectors_of(processor.kinds)
    given = [{"user": vectors["user"][:2]}, {}, {"item": vectors["item"][0], "image": vectors["image"][:1]}, {
        name: of_kind[3] for name, of_kind in vectors.items()
    }]  # fmt: skip
    rows = processor.rows(TEXTS, TEXTS, lexical_embeds=given)
    packed, padded = DataCollatorWithFusion(processor, packing=True)(rows), DataCollatorWithFusion(processor)(rows)
    assert len(packed["input_ids"]) < len(padded["input_ids"])
    losses = []
    for batch in (packed, padded):
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        losses.append((loss.detach(), [parameter.grad.clone() for parameter in model.encoder.fusion.parameters()]))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-6)


def test_a_call_without_vectors_names_the_kinds(processor):
    with pytest.raises(ValueError, match=r"a dict by kind \('item': 5 numbers, 'user': 3 numbers, 'image': 7 numbers"):
        processor(TEXTS)


def test_placeholders_stand_where_the_text_writes_them(processor):
    ids = processor.tokenizer.convert_tokens_to_ids(["<lexical>", "<lexical:user>", "<lexical:image>"])
    text = "a <lexical:image> b <lexical:user> c"
    vectors = {name: of_kind[:1] for name, of_kind in vectors_of(processor.kinds).items()}
    expected = [ids[0], "a", *[ids[2]] * 3, "b", *[ids[1]] * 2, "c"]
    for made in (processor([text], lexical_embeds=vectors), DataCollatorWithFusion(processor)(
        processor.rows([text], lexical_embeds=vectors)
    )):  # fmt: skip
        placed = [token for token in made["input_ids"][0].tolist() if token in ids or token == ids[0]]
        assert placed == [token for token in expected if isinstance(token, int)]
        assert made["attention_mask"].all()


def test_the_mask_of_a_row_follows_the_tokens_that_are_put_in(processor):
    first = processor.lexical_token_id
    row = {
        "input_ids": [5, 6, first + 1, 7, 1],
        "attention_mask": [1, 0, 1, 1, 1],
        "lexical_embeds": {"user": torch.ones(3), "item": torch.ones(5)},
    }
    batch = DataCollatorWithFusion(processor)([row])
    assert batch["input_ids"].tolist() == [[first, 5, 6, first + 1, first + 1, 7, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 1, 1, 1, 1]]


def test_a_collator_without_kinds_says_what_it_needs(tokenizer):
    rows = [{"input_ids": [5, 1], "lexical_embeds": {"item": torch.ones(5)}}]
    with pytest.raises(ValueError, match="names the kind 'item'.* Give `vectors=` to the model and the processor"):
        DataCollatorWithFusion(tokenizer)(rows)


def test_a_model_tells_the_collator_its_kinds(tokenizer, model):
    rows = [{"input_ids": [5, 1], "labels": [7, 1], "lexical_embeds": {"user": torch.ones(3)}}]
    batch = DataCollatorWithFusion(tokenizer, model=model)(rows)
    assert model(**batch).loss.isfinite()


def test_padding_to_one_size_holds_for_each_kind(processor):
    collator = DataCollatorWithFusion(processor, padding="max_length", max_length=20, max_vectors=2)
    batch = collator([{"input_ids": [5, 1], "lexical_embeds": {"item": torch.ones(5)}}])
    shapes = {name: tuple(of_kind.shape) for name, of_kind in batch["lexical_embeds"].items()}
    assert shapes == {"item": (1, 2, 5), "user": (1, 2, 3), "image": (1, 2, 7)}


def test_tokens_that_were_added_between_the_placeholders_are_refused(tokenizer, plain_folders):
    DataCollatorWithFusion(tokenizer)
    tokenizer.add_tokens(["<mine>"])
    with pytest.raises(ValueError, match="<lexical:user> is token .* because the placeholders of all kinds follow"):
        T5FusionProcessor(tokenizer, vectors=VECTORS, lexical_encoder=None, lexical_source="given")


def test_a_placeholder_needs_no_text_beside_it(processor):
    batch = processor(["<lexical:user>"], lexical_embeds={"user": torch.ones(1, 3)})
    user = processor.lexical_token_id + 1
    assert batch["input_ids"].tolist() == [[user, user, 1]]


def test_a_table_is_not_resized_for_placeholders_alone(plain_folders):
    """AutoPeftModel asks for a row per token of the tokenizer, which has a placeholder for each kind."""
    processor = processor_for(plain_folders["flan"])
    rows = processor.lexical_token_id
    model = T5WithFusion(
        str(plain_folders["flan"]),
        vectors=VECTORS,
        lexical_token_id=rows,
        vocab_size=rows,
        ignore_mismatched_sizes=True,
    )
    model.resize_token_embeddings(rows + len(VECTORS))
    assert model.shared.num_embeddings == rows


def test_masks_of_packed_rows_belong_together(model, batch):
    with pytest.raises(ValueError, match="only one of `row_ids` and `target_row_ids`"):
        model(**batch, row_ids=torch.ones_like(batch["input_ids"]))


# --- the recipe's vectors beside given ones


def test_the_first_kind_may_come_from_the_encoder(plain_folders):
    processor = T5FusionProcessor(str(plain_folders["flan"]), vectors={"text": 384, "user": 3})
    made, users = processor.encode(["app", "user"]), torch.ones(2, 3)
    batch = processor(["app", "user"], lexical_embeds={"user": users})
    assert torch.equal(batch["lexical_embeds"]["text"], made) and torch.equal(batch["lexical_embeds"]["user"], users)
    given = processor(["app", "user"], lexical_embeds={"text": -made, "user": users})
    assert torch.equal(given["lexical_embeds"]["text"], -made)
