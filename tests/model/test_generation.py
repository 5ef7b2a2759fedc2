"""`generate` with lexical vectors."""

import pytest
import torch
from transformers import T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from t5fusion import T5WithFusion

GREEDY = {"max_new_tokens": 7, "do_sample": False}
VECTORS, LENGTHS = (2, 1, 0, 3), (4, 7, 5, 2)


def prompt(batch, row=None):
    """Return the arguments of `generate` from a batch, or from one row without padding and spare vectors."""
    batch = {name: value for name, value in batch.items() if name != "labels"}
    if row is None:
        return batch
    real = batch["attention_mask"][row].bool()
    vectors = batch["lexical_embeds"][row]
    vectors = vectors[(vectors != 0).any(-1)]
    one = {"input_ids": batch["input_ids"][row][real][None], "attention_mask": batch["attention_mask"][row][real][None]}
    return one | ({"lexical_embeds": vectors[None]} if len(vectors) else {})


def padded(ids, length):
    return torch.nn.functional.pad(ids, (0, length - ids.shape[1]))


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 4}, {"num_beams": 4, "num_return_sequences": 3}, {"use_cache": False}],
    ids=["greedy", "beams", "several beams", "no cache"],
)
def test_ragged_rows_equal_one_by_one(flan, inputs_for, options):
    batch = inputs_for(flan, VECTORS, LENGTHS)
    together = flan.generate(**prompt(batch), **GREEDY | options)
    each = options.get("num_return_sequences", 1)
    rows = [flan.generate(**prompt(batch, row), **GREEDY | options) for row in range(len(VECTORS))]
    for row, alone in enumerate(rows):
        assert torch.equal(padded(alone, together.shape[1]), together[row * each : (row + 1) * each])
    assert len({tuple(row) for row in together.tolist()}) > 1


def test_the_vectors_change_what_is_generated(flan, inputs_for):
    batch = prompt(inputs_for(flan, (1,) * 8, (2,) * 8))
    batch["input_ids"] = batch["input_ids"][:1].expand(8, -1)
    scores = flan.generate(**batch, **GREEDY, output_logits=True, return_dict_in_generate=True).logits[0]
    assert torch.pdist(scores).min() > 1e-2


def test_greedy_equals_repeated_forward(flan, inputs_for):
    batch = prompt(inputs_for(flan))
    generated = flan.generate(**batch, **GREEDY, min_new_tokens=7)
    logits = flan(**batch, decoder_input_ids=generated[:, :-1]).logits
    logits[..., 1] = -torch.inf
    assert torch.equal(logits.argmax(-1), generated[:, 1:])


def test_cache_changes_nothing(flan, inputs_for):
    batch = prompt(inputs_for(flan, VECTORS, LENGTHS))
    options = GREEDY | {"output_logits": True, "return_dict_in_generate": True}
    cached, again = (flan.generate(**batch, **options, use_cache=use_cache) for use_cache in (True, False))
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(again.logits), rtol=1e-4, atol=1e-5)


def test_static_cache_changes_nothing(flan, inputs_for):
    batch = prompt(inputs_for(flan, VECTORS, LENGTHS))
    static = flan.generate(**batch, **GREEDY, cache_implementation="static")
    assert torch.equal(static, flan.generate(**batch, **GREEDY))


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "temperature": 0.7}])
def test_without_vectors_it_is_the_plain_t5(plain_folder, inputs_for, options):
    plain = T5ForConditionalGeneration.from_pretrained(plain_folder).eval()
    fused = T5WithFusion(plain_folder).eval()
    batch = prompt(inputs_for(fused, (0, 0)))
    del batch["lexical_embeds"]
    results = []
    for model in (plain, fused):
        torch.manual_seed(0)
        results.append(model.generate(**batch, **GREEDY | options))
    assert torch.equal(*results)


def test_sampling_repeats_by_seed(flan, inputs_for):
    batch = prompt(inputs_for(flan))
    samples = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        samples.append(flan.generate(**batch, do_sample=True, num_return_sequences=4, max_new_tokens=7, top_k=0))
    assert samples[0].shape[0] == 8
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(padded(samples[0], 8), padded(samples[2], 8))


def test_several_samples_read_their_own_vector(flan, inputs_for):
    """`num_return_sequences` repeats the encoder's output row by row."""
    batch = prompt(inputs_for(flan, (2, 1), (4, 4)))
    options = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 2, "output_logits": True}
    first = flan.generate(**batch, **options, return_dict_in_generate=True).logits[0]
    expected = flan(**batch, decoder_input_ids=torch.zeros(2, 1, dtype=torch.int64)).logits[:, 0]
    torch.testing.assert_close(first, expected.repeat_interleave(3, 0))


def test_assisted_generation_equals_greedy(plain_folders, flan, inputs_for):
    batch = prompt(inputs_for(flan, (2,), (5,)))
    assistant = T5WithFusion(plain_folders["v1.1"]).eval()
    greedy = flan.generate(**batch, **GREEDY)
    assert torch.equal(flan.generate(**batch, **GREEDY, assistant_model=assistant), greedy)
    assert torch.equal(flan.generate(**batch, **GREEDY, assistant_model=flan), greedy)


def test_encoder_outputs_in_place_of_vectors(flan, inputs_for):
    batch = prompt(inputs_for(flan, VECTORS, LENGTHS))
    encoded = flan.encoder(**batch)
    expected = flan.generate(**batch, **GREEDY)
    mask = batch["attention_mask"]
    assert torch.equal(flan.generate(encoder_outputs=encoded, attention_mask=mask, **GREEDY), expected)
    output = BaseModelOutput(last_hidden_state=encoded[0])
    assert torch.equal(flan.generate(encoder_outputs=output, attention_mask=mask, **GREEDY), expected)


def test_inputs_embeds(flan, inputs_for):
    batch = prompt(inputs_for(flan, VECTORS, LENGTHS))
    expected = flan.generate(**batch, **GREEDY)
    ids, vectors, mask = (batch[name] for name in ("input_ids", "lexical_embeds", "attention_mask"))
    embedded = flan.encoder.embed(ids, lexical_embeds=vectors)
    assert torch.equal(flan.generate(inputs_embeds=embedded, attention_mask=mask, **GREEDY), expected)
    tokens = flan.shared(ids)
    with_vectors = flan.generate(inputs_embeds=tokens, attention_mask=mask, lexical_embeds=vectors, **GREEDY)
    assert torch.equal(with_vectors, expected)


def test_one_vector_each_in_two_dimensions(flan, inputs_for):
    batch = prompt(inputs_for(flan))
    flat = batch | {"lexical_embeds": batch["lexical_embeds"].squeeze(1)}
    assert torch.equal(flan.generate(**flat, **GREEDY), flan.generate(**batch, **GREEDY))


def test_vectors_without_placeholders_are_refused(flan, inputs_for):
    batch = prompt(inputs_for(flan, (0, 0))) | {"lexical_embeds": torch.ones(2, 384)}
    with pytest.raises(ValueError, match="no row holds a placeholder <lexical>"):
        flan.generate(**batch, **GREEDY)
