"""Every way of decoding. Without vectors, the plain T5 must give the same; batches must give what single rows give."""

import torch
from shared_fixtures import make_tokenizer
from transformers import GenerationConfig, TextIteratorStreamer, WatermarkingConfig

from .models import batch_for, lexical_token_id, load
from .table import Table

VECTORS, LENGTHS = (2, 1, 0, 3), (4, 7, 5, 2)
WAYS = {
    "greedy": {},
    "beams": {"num_beams": 4},
    "beams, several of them returned": {"num_beams": 4, "num_return_sequences": 3},
    "beams, length penalty, early stopping": {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True},
    "sampling": {"do_sample": True},
    "sampling, top-k, top-p, temperature": {"do_sample": True, "top_k": 9, "top_p": 0.9, "temperature": 0.7},
    "sampling, min-p": {"do_sample": True, "min_p": 0.05},
    "sampling, typical-p": {"do_sample": True, "typical_p": 0.8},
    "sampling, epsilon and eta cutoff": {"do_sample": True, "epsilon_cutoff": 1e-3, "eta_cutoff": 1e-3},
    "sampling, several returned": {"do_sample": True, "num_return_sequences": 3},
    "beam sampling": {"do_sample": True, "num_beams": 3},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "quantised cache": {"cache_implementation": "quantized"},
    "offloaded cache": {"cache_implementation": "offloaded"},
    "repetition penalty": {"repetition_penalty": 1.5},
    "encoder repetition penalty": {"encoder_repetition_penalty": 1.5},
    "no repeated n-grams": {"no_repeat_ngram_size": 2},
    "no repeated n-grams of the input": {"encoder_no_repeat_ngram_size": 2},
    "bad words": {"bad_words_ids": [[7], [8, 9]]},
    "forced words": {"force_words_ids": [[7]], "num_beams": 3},
    "forced first and last token": {"forced_bos_token_id": 5, "forced_eos_token_id": 1},
    "suppressed tokens": {"suppress_tokens": [7], "begin_suppress_tokens": [8]},
    "sequence bias": {"sequence_bias": [[[7], 5.0]]},
    "guidance": {"guidance_scale": 1.5},
    "watermark": {"watermarking_config": WatermarkingConfig(bias=2.5)},
    "prompt lookup": {"prompt_lookup_num_tokens": 2},
    "groups of beams": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "contrastive search": {"penalty_alpha": 0.6, "top_k": 4},
    "DoLa": {"dola_layers": "high"},
    "a GenerationConfig": {"generation_config": GenerationConfig(max_new_tokens=4, num_beams=2, eos_token_id=1,
                                                                 pad_token_id=0, decoder_start_token_id=0)},
}  # fmt: skip


def write(model, batch: dict, **options) -> torch.Tensor:
    batch = {name: value for name, value in batch.items() if name != "labels"}
    torch.manual_seed(0)
    limit = {} if "generation_config" in options else {"max_new_tokens": 6}
    return model.generate(**batch, **limit | options)


def one_row(batch: dict, row: int) -> dict:
    """Return one row of a batch, without padding and spare vectors."""
    real = batch["attention_mask"][row].bool()
    alone = {name: batch[name][row][real][None] for name in ("input_ids", "attention_mask")}
    vectors = batch.get("lexical_embeds")
    kept = None if vectors is None else vectors[row][(vectors[row] != 0).any(-1)]
    return alone if kept is None or not len(kept) else alone | {"lexical_embeds": kept[None]}


def as_t5(model_name: str, options: dict) -> None:
    """The plain T5 writes the same for a text without vectors."""
    batch = batch_for("T5", VECTORS, LENGTHS)
    written = write(load(model_name), batch, **options)
    if model_name == "T5WithFusion":
        assert torch.equal(written, write(load("T5"), batch, **options)), "it is not what the plain T5 writes"


def one_by_one(model_name: str, options: dict) -> None:
    if options.get("do_sample"):  # It draws as many random numbers as there are rows.
        return as_drawn(model_name, options)
    model, batch = load(model_name), batch_for(model_name, VECTORS, LENGTHS)
    together = write(model, batch, **options)
    each = options.get("num_return_sequences", 1)
    for row in range(len(LENGTHS)):
        alone = write(model, one_row(batch, row), **options)
        alone = torch.nn.functional.pad(alone, (0, together.shape[1] - alone.shape[1]))
        assert torch.equal(alone, together[row * each : (row + 1) * each]), (
            f"row {row} gives other tokens alone than in the batch"
        )


def as_drawn(model_name: str, options: dict) -> str:
    """The same random numbers give the same text twice, and other vectors give another."""
    model, batch = load(model_name), batch_for(model_name, VECTORS, LENGTHS)
    assert torch.equal(write(model, batch, **options), write(model, batch, **options)), "another by the same numbers"
    return (
        "the batch was sampled twice with the same seed, because a row that is sampled alone draws other random numbers"
    )


def vectors_count(model_name: str, options: dict) -> None:
    model, batch = load(model_name), batch_for(model_name, (1, 1), (3, 3))
    logits = []
    for vectors in (batch["lexical_embeds"], batch["lexical_embeds"].flip(-1)):
        batch["lexical_embeds"] = vectors
        written = write(model, batch, **options, output_logits=True, return_dict_in_generate=True)
        logits.append(written.logits[0])
    assert not torch.equal(*logits), "the vectors have no effect"


def assisted(model_name: str) -> None:
    """Assisted decoding of one row, as transformers requires. The assistant is the model itself."""
    model, batch = load(model_name), one_row(batch_for(model_name, (2,), (4,)), 0)
    alone = write(model, batch)
    assert torch.equal(write(model, batch, assistant_model=load(model_name)), alone), "not what it writes by itself"


def streams(model_name: str) -> None:
    model, batch = load(model_name), one_row(batch_for(model_name, (2,), (4,)), 0)
    streamer = TextIteratorStreamer(make_tokenizer(), skip_special_tokens=True)
    written = write(model, batch, streamer=streamer)
    text = "".join(streamer).strip()
    assert text == make_tokenizer().decode(written[0], skip_special_tokens=True).strip(), (
        "the stream is not what is returned"
    )


def given_encoder_outputs(model_name: str) -> None:
    model, batch = load(model_name), batch_for(model_name, VECTORS, LENGTHS)
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "attention_mask")}
    with torch.no_grad():
        encoded = model.get_encoder()(**inputs, attention_mask=batch["attention_mask"])
    written = model.generate(encoder_outputs=encoded, attention_mask=batch["attention_mask"], max_new_tokens=6)
    assert torch.equal(written, write(model, batch)), "not what it writes of the ids"


def given_embeddings(model_name: str) -> None:
    model, batch = load(model_name), batch_for(model_name, VECTORS, LENGTHS)
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "input_ids")}
    inputs["inputs_embeds"] = model.get_input_embeddings()(batch["input_ids"])
    assert torch.equal(write(model, inputs), write(model, batch)), "not what it writes of the ids"


def beginning(model_name: str) -> None:
    """The text that generation continues."""
    model, batch = load(model_name), batch_for(model_name, VECTORS, LENGTHS)
    start = torch.tensor([[0, 5, 6]] * len(LENGTHS))
    written = write(model, batch, decoder_input_ids=start)
    assert torch.equal(written[:, :3], start), "it does not begin as it was told"


def past_the_table(model_name: str) -> None:
    """A penalty that looks up the input's ids in the logits, which have no column for `<lexical>`."""
    if model_name == "T5":
        return
    model = load(model_name, lexical_token_id=1000)
    batch = batch_for(model_name, VECTORS, LENGTHS)
    batch["input_ids"][batch["input_ids"] == lexical_token_id()] = 1000
    write(model, batch, encoder_repetition_penalty=1.5)


OTHERS = {
    "assisted": assisted,
    "streamed": streams,
    "`encoder_outputs` given": given_encoder_outputs,
    "`inputs_embeds` given": given_embeddings,
    "`decoder_input_ids` given": beginning,
    "encoder repetition penalty, `<lexical>` past the embedding table": past_the_table,
}


def make() -> Table:
    table = Table(
        "Decoding",
        "`generate` on rows with two, one, no and three vectors. *As T5*: without vectors, the tokens are the same.",
        ["as T5 without vectors", "with vectors, the same in a batch as alone", "the vectors matter"],
    )
    as_plain, alone, count = table.columns
    for row, options in WAYS.items():
        table.add(row, as_plain, as_t5, options)
        table.add(row, alone, one_by_one, options)
        table.add(row, count, vectors_count, options, models=("T5WithFusion",))
    for row, check in OTHERS.items():
        table.add(row, alone, check)
    return table
