"""Engines give the tokens of the reference, or stay within a bound; what they cannot do, they refuse."""

import re

import pytest
import torch
from peft import LoraConfig, PeftModel, PolyConfig, PromptTuningConfig, TaskType, get_peft_model

import t5fusion
from t5fusion import T5FusionProcessor, VectorKind
from t5fusion.engines import ENGINES, choose_engine, load_engine
from t5fusion.engines.features import Features, detect_features
from t5fusion.engines.packed_model import REFUSED, PackedT5

NOTHING = Features(onednn=False, bf16=False, int8=False)
ENDS = list(range(3, 30))  # So many tokens end a row that the rows of a random model end one after another.
OPTIONS = {
    "greedy": {},
    "greedy, rows end one after another": {"eos_token_id": ENDS},
    "greedy, longer than the first cache": {"max_new_tokens": 70, "eos_token_id": None},
    "greedy, processors": {"eos_token_id": ENDS, "no_repeat_ngram_size": 2, "min_new_tokens": 3},
    "greedy, processor of the input": {"encoder_repetition_penalty": 1.5, "eos_token_id": ENDS},
    "beams": {"num_beams": 4},
    "beams that end": {"num_beams": 4, "eos_token_id": ENDS, "early_stopping": True},
    "beams, longer than the first cache": {"num_beams": 2, "max_new_tokens": 70, "eos_token_id": None},
    "beams returned": {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.3, "eos_token_id": ENDS},
    "beams, penalty": {"num_beams": 3, "repetition_penalty": 1.4, "eos_token_id": ENDS},
    "no cache": {"use_cache": False, "num_beams": 2},
    "decoder's first tokens": {"decoder_input_ids": torch.tensor([[0, 5, 6], [0, 7, 8], [0, 9, 5], [0, 6, 6]])},
}


@pytest.fixture(params=["v1.0", "v1.1", "flan"])
def model(request, plain_folders):
    return t5fusion.T5WithFusion(str(plain_folders[request.param])).eval()


def batch_for(inputs_for, model, vectors=(1, 2, 0, 3), lengths=(6, 3, 9, 1)):
    """Return a batch of rows of different lengths, with different numbers of vectors."""
    batch = inputs_for(model, vectors, lengths)
    del batch["labels"]
    return batch if any(vectors) else {name: value for name, value in batch.items() if name != "lexical_embeds"}


def with_lora(model, **changes):
    """Return the model with an adapter whose weights are random, not zero."""
    config = {"r": 4, "target_modules": ["q", "v", "wo"], "task_type": TaskType.SEQ_2_SEQ_LM} | changes
    peft_model = get_peft_model(model, LoraConfig(**config)).eval()
    torch.manual_seed(1)
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return peft_model


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("features", [None, NOTHING], ids=["this processor", "no oneDNN"])
def test_fp32_gives_the_tokens_of_the_reference(model, inputs_for, options, features):
    batch, options = batch_for(inputs_for, model), {"max_new_tokens": 12} | options
    engine = load_engine(model, "fp32", features)
    assert isinstance(engine, PackedT5)
    expected = model.generate(**batch, **options)
    assert torch.equal(engine.generate(**batch, **options), expected)


@pytest.mark.parametrize("vectors", [(0, 0, 0), (1, 1, 1), (2, 2, 2), (0, 3, 1)], ids=str)
@pytest.mark.parametrize("beams", [1, 4])
def test_vectors_are_read_as_the_model_reads_them(flan, inputs_for, vectors, beams):
    batch = batch_for(inputs_for, flan, vectors, (4, 7, 2))
    engine, options = load_engine(flan, "fp32"), {"num_beams": beams, "max_new_tokens": 10}
    assert torch.equal(engine.generate(**batch, **options), flan.generate(**batch, **options))
    if any(vectors):
        other = batch | {"lexical_embeds": -3 * batch["lexical_embeds"]}
        distance = engine(**batch, decoder_input_ids=torch.zeros(3, 1, dtype=torch.int64)).logits
        distance = distance - engine(**other, decoder_input_ids=torch.zeros(3, 1, dtype=torch.int64)).logits
        assert (distance.abs().amax((1, 2)) > 1e-3).tolist() == [count > 0 for count in vectors]


@pytest.mark.parametrize("beams", [1, 4])
def test_vectors_of_several_kinds_are_read_as_the_model_reads_them(plain_folders, beams):
    kinds = {"user": 5, "image": VectorKind(7, tokens=4, projector="mlp"), "price": VectorKind(1, scale="log")}
    model = t5fusion.T5WithFusion(str(plain_folders["flan"]), vectors=kinds).eval()
    processor = T5FusionProcessor(
        str(plain_folders["flan"]), vectors=kinds, lexical_encoder=None, lexical_source="given"
    )
    generator = torch.Generator().manual_seed(0)
    vectors = {name: torch.randn(3, kind.dim, generator=generator) for name, kind in processor.kinds.items()}
    vectors["image"] = [vectors["image"][:2], None, vectors["image"][1]]
    batch = dict(processor(["app", "a_b", "user of it"], lexical_embeds=vectors))
    engine, options = load_engine(model, "fp32"), {"num_beams": beams, "max_new_tokens": 10}
    expected = model.generate(**batch, **options)
    assert torch.equal(engine.generate(**batch, **options), expected)
    other = batch | {"lexical_embeds": {name: -3 * numbers for name, numbers in batch["lexical_embeds"].items()}}
    first = torch.zeros(3, 1, dtype=torch.int64)
    logits, changed = (engine(**each, decoder_input_ids=first).logits for each in (batch, other))
    torch.testing.assert_close(logits, model(**batch, decoder_input_ids=first).logits, rtol=1e-4, atol=1e-4)
    assert ((changed - logits).abs().amax((1, 2)) > 1e-3).all()


def test_vectors_without_placeholders_raise_the_error_of_the_model(flan, inputs_for):
    batch = batch_for(inputs_for, flan)
    batch["input_ids"] = batch["input_ids"].clamp(max=30)
    with pytest.raises(ValueError, match="lexical") as of_model:
        flan.generate(**batch)
    with pytest.raises(ValueError, match="lexical") as of_engine:
        load_engine(flan, "fp32").generate(**batch)
    assert str(of_engine.value) == str(of_model.value)


def test_small_and_empty_hidden_states_are_normed_as_in_the_model(flan, inputs_for):
    batch = batch_for(inputs_for, flan, (0, 0), (4, 6)) | {"decoder_input_ids": torch.tensor([[0, 5, 0], [0, 6, 7]])}
    with torch.no_grad():
        flan.shared.weight.mul_(1e-3)[0] = 0
    logits = load_engine(flan, "fp32")(**batch).logits
    torch.testing.assert_close(logits, flan(**batch).logits, rtol=1e-4, atol=1e-4)


def test_padding_does_not_matter(flan, inputs_for):
    batch, engine = batch_for(inputs_for, flan), load_engine(flan, "fp32")
    together = engine.generate(**batch, max_new_tokens=8, eos_token_id=None)
    for row, length in enumerate(batch["attention_mask"].sum(1)):
        alone = {name: value[row : row + 1, :length] for name, value in batch.items()}
        alone["lexical_embeds"] = batch["lexical_embeds"][row : row + 1]
        assert torch.equal(engine.generate(**alone, max_new_tokens=8, eos_token_id=None)[0], together[row])
    unmasked = {name: value for name, value in alone.items() if name != "attention_mask"}
    assert torch.equal(engine.generate(**unmasked, max_new_tokens=8, eos_token_id=None)[0], together[row])


def test_scores_and_random_draws_are_those_of_the_reference(flan, inputs_for):
    batch, engine = batch_for(inputs_for, flan), load_engine(flan, "fp32")
    options = {"do_sample": True, "num_return_sequences": 2, "max_new_tokens": 8, "output_scores": True}
    results = []
    for each in (flan, engine):
        torch.manual_seed(3)
        results.append(each.generate(**batch, **options, return_dict_in_generate=True))
    assert torch.equal(results[0].sequences, results[1].sequences)
    for expected, scores in zip(results[0].scores, results[1].scores, strict=True):
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("beams", [1, 4])
def test_an_adapter_is_merged_into_a_copy(model, inputs_for, beams):
    batch, options = batch_for(inputs_for, model), {"num_beams": beams, "max_new_tokens": 10}
    untuned = model.generate(**batch, **options)
    peft_model = with_lora(model)
    before = {name: value.clone() for name, value in peft_model.state_dict().items()}
    engine = load_engine(peft_model, "fp32")
    expected = peft_model.generate(**batch, **options)
    assert torch.equal(engine.generate(**batch, **options), expected)
    assert not torch.equal(expected, untuned)
    after = peft_model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    merged = load_engine(peft_model.merge_and_unload(), "fp32")
    assert torch.equal(merged.generate(**batch, **options), expected)


def test_an_adapter_that_transformers_loaded_is_merged_too(flan, inputs_for, tmp_path):
    with_lora(flan).save_pretrained(tmp_path)
    loaded = t5fusion.T5WithFusion(str(tmp_path)).eval()
    assert not isinstance(loaded, PeftModel) and loaded.peft_config
    batch = batch_for(inputs_for, loaded)
    expected = loaded.generate(**batch, max_new_tokens=10)
    assert torch.equal(load_engine(loaded, "fp32").generate(**batch, max_new_tokens=10), expected)
    assert any("lora_" in name for name in loaded.state_dict())


def test_an_engine_is_a_copy(flan, inputs_for):
    batch, options = batch_for(inputs_for, flan), {"max_new_tokens": 8, "eos_token_id": None}
    engine, expected = load_engine(flan, "fp32"), flan.generate(**batch, **options)
    for parameter in flan.parameters():
        torch.nn.init.normal_(parameter)
    flan.generation_config.num_beams = 3
    assert not torch.equal(flan.generate(**batch, **options), expected)
    assert torch.equal(engine.generate(**batch, **options), expected)


def test_rows_that_have_ended_leave_the_batch(flan, inputs_for, monkeypatch):
    engine, steps = load_engine(flan, "fp32"), []
    step = engine.packed_decoder.step
    monkeypatch.setattr(
        engine.packed_decoder, "step", lambda tokens, cache: steps.append(len(tokens)) or step(tokens, cache)
    )
    batch, options = batch_for(inputs_for, flan), {"eos_token_id": ENDS, "max_new_tokens": 20}
    expected = flan.generate(**batch, **options)
    assert torch.equal(engine.generate(**batch, **options), expected)
    assert steps[0] == 4 and steps == sorted(steps, reverse=True) and steps[-1] < 4


def test_beams_copy_no_cache(flan, inputs_for, monkeypatch):
    from t5fusion.engines.decoder_cache import Cache

    seen = []
    reorder = Cache.reorder_cache

    def watched(cache, chosen):
        own = cache.generated.view(torch.int32).clone()  # Unused places hold anything, also NaN.
        reorder(cache, chosen)
        seen.append((cache.generated.data_ptr(), torch.equal(own, cache.generated.view(torch.int32))))

    monkeypatch.setattr(Cache, "reorder_cache", watched)
    load_engine(flan, "fp32").generate(**batch_for(inputs_for, flan), num_beams=4, max_new_tokens=9)
    assert len(seen) > 5 and len({place for place, _ in seen}) == 1 and all(is_same for _, is_same in seen)


@pytest.fixture(scope="module")
def tiny():
    """The embedded base model, which was trained on text, and the inputs of some names."""
    model = t5fusion.T5WithFusion("tiny_t5_v2", dtype=torch.float32).eval()
    numbers = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 4000, (24, 14), generator=numbers)
    ids[:, 0], ids[:, -1] = model.config.lexical_token_id, 1
    vectors = torch.nn.functional.normalize(torch.randn(24, 1, 384, generator=numbers), dim=-1)
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "lexical_embeds": vectors}


# The bounds stand in docs/speed.md.
@pytest.mark.parametrize(
    ("engine", "bound", "agreement"), [("fp32", 1e-4, 1.0), ("bf16", 0.03, 0.93), ("int8", 0.08, 0.8)]
)
def test_logits_and_tokens_stay_within_the_stated_bound(tiny, engine, bound, agreement):
    model, batch = tiny
    written = model.generate(**batch, max_new_tokens=12)[:, :-1]
    expected = model(**batch, decoder_input_ids=written).logits
    logits = load_engine(model, engine)(**batch, decoder_input_ids=written).logits
    distance = (logits - expected).square().mean().sqrt() / expected.std()
    assert distance < bound
    assert (logits.argmax(-1) == expected.argmax(-1)).float().mean() >= agreement
    assert engine == "fp32" or choose_engine(model, engine).name == "fp32" or distance > 1e-3


@pytest.mark.parametrize("engine", ["bf16", "int8"])
def test_a_processor_that_lacks_a_feature_gets_the_tokens_of_the_reference(flan, inputs_for, engine, capsys):
    batch = batch_for(inputs_for, flan)
    loaded = load_engine(flan, engine, NOTHING)
    assert f"Engine {engine}: fp32 runs, because this processor does not multiply" in capsys.readouterr().err
    assert torch.equal(loaded.generate(**batch, max_new_tokens=9), flan.generate(**batch, max_new_tokens=9))


def test_int8_without_bf16_keeps_the_sensitive_matrices_in_fp32(flan, inputs_for):
    engine = load_engine(flan, "int8", Features(onednn=True, bf16=False, int8=True))
    if not detect_features().int8:
        return
    layer = engine.packed_decoder.blocks[0].feed_forward
    assert type(layer.wo).__name__ == "PackedLinear" and layer.wo.dtype == torch.float32
    assert type(layer.wi).__name__ == "Int8Linear"


@pytest.mark.slow
def test_an_older_processor_gets_the_tokens_of_the_reference(run_python, plain_folders, monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    code = """
        import sys, torch, t5fusion
        from t5fusion.engines import load_engine
        model = t5fusion.T5WithFusion(sys.argv[1]).eval()
        batch = {"input_ids": torch.arange(3, 30).view(3, 9), "attention_mask": torch.ones(3, 9, dtype=torch.int64)}
        expected = model.generate(**batch, max_new_tokens=9)
        engines = [load_engine(model, name) for name in ("fp32", "bf16")]
        print([torch.equal(engine.generate(**batch, max_new_tokens=9), expected) for engine in engines])
    """
    assert run_python(code, plain_folders["flan"], fresh=True).strip() == "[True, True]"


def test_auto_says_what_it_chose_and_why(flan, capsys):
    engine = load_engine(flan, "auto")
    assert engine.engine == "fp32"
    said = capsys.readouterr().err
    assert said.startswith("Engine auto: fp32 runs, because it gives the tokens of torch")
    assert load_engine(flan.bfloat16(), "auto") is flan
    said = capsys.readouterr().err
    assert said.startswith("Engine auto: torch runs, because the model's weights are bfloat16")


def test_the_reference_is_the_model_itself_and_says_nothing(flan, capsys):
    assert load_engine(flan, "torch") is flan and capsys.readouterr().err == ""


def test_what_an_engine_cannot_do_is_refused(flan, inputs_for):
    batch, engine = batch_for(inputs_for, flan), load_engine(flan, "fp32")
    for name in REFUSED:
        with pytest.raises(ValueError, match=f"the engine fp32 has no `{name}`. Leave it out, or use the engine torch"):
            engine.generate(**batch, **{name: 3})
    engine.generation_config.output_attentions = True
    with pytest.raises(ValueError, match="no `output_attentions`"):
        engine.generate(**batch)


def test_models_that_an_engine_cannot_run_are_refused(flan, capsys):
    with pytest.raises(ValueError, match="there is no engine 'fast'; expected one of torch, fp32, bf16, int8, auto"):
        load_engine(flan, "fast")
    prompt = get_peft_model(flan, PromptTuningConfig(task_type=TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=2))
    with pytest.raises(ValueError, match="PROMPT_TUNING adapter is made of inputs"):
        load_engine(prompt, "int8")
    assert load_engine(prompt, "auto") is prompt and "Engine auto: torch runs" in capsys.readouterr().err


def test_a_bf16_model_is_refused_where_the_same_tokens_are_promised(flan):
    with pytest.raises(ValueError, match="the model's weights are bfloat16, and only float32 gives the same tokens"):
        load_engine(flan.bfloat16(), "fp32")
    assert load_engine(flan, "bf16").engine in ("bf16", "fp32")


def test_matrices_of_other_kinds_are_refused(flan):
    flan.decoder.block[0].layer[2].DenseReluDense.wo.bias = torch.nn.Parameter(torch.zeros(16))
    with pytest.raises(ValueError, match="expected an nn.Linear without bias"):
        load_engine(flan, "fp32")


def test_every_engine_has_a_description():
    assert list(ENGINES) == ["torch", "fp32", "bf16", "int8", "auto"] and all(ENGINES.values())


def test_what_replaces_an_engine_is_checked_too(flan):
    """Where int8 cannot run, fp32 does, and it cannot run a model in bf16."""
    with pytest.raises(ValueError, match="int8 cannot run this model: the model's weights are bfloat16"):
        load_engine(flan.bfloat16(), "int8", NOTHING)


def test_auto_leaves_an_adapter_that_cannot_be_merged_to_torch(flan, capsys):
    adapted = get_peft_model(flan, PolyConfig(task_type=TaskType.SEQ_2_SEQ_LM, r=2, target_modules=["q"])).eval()
    assert load_engine(adapted, "auto") is adapted
    assert re.search(r"Engine auto: torch runs, because .*cannot be merged .*\(\S+\)\.", capsys.readouterr().err)
    with pytest.raises(ValueError, match=r"cannot be merged .*\(\S+\). Use the engine torch"):
        load_engine(adapted, "fp32")
