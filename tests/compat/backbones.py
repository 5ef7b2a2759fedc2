"""Base models: small versions of the T5s on the Hub, with their configs, tokenizers and formats of weights."""

import json
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import save_torch_state_dict
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from shared_fixtures import make_tokenizer
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    ByT5Tokenizer,
    MT5ForConditionalGeneration,
    PreTrainedModel,
    RobertaTokenizer,
    T5ForConditionalGeneration,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.utils import logging

from t5fusion import T5FusionProcessor, T5WithFusion

from .models import KEPT, in_another_process, logits_of
from .table import Table

TEXTS = ["app_settings", "a b c d"]
TINY = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 160}
IDS = {"eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 0}
V1_0 = TINY | IDS | {"model_type": "t5", "n_positions": 512, "architectures": ["T5WithLMHeadModel"]}
V1_1 = (
    TINY
    | IDS
    | {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "tokenizer_class": "T5Tokenizer"}
    | {"num_decoder_layers": 2, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
)
CODE = V1_0 | {"bos_token_id": 1, "eos_token_id": 2, "vocab_size": 270, "feed_forward_proj": "relu"}


# Tokenizers


def of_bytes():
    return ByT5Tokenizer()  # 3 + 256 + 125 ids fill the table.


def of_code():
    """RoBERTa's tokenizer with the five special tokens in CodeT5's positions. Its ids fill the table."""
    pieces = ["<pad>", "<s>", "</s>", "<unk>", "<mask>", *bytes_to_unicode().values()]
    merges = [("a", "p"), ("ap", "p"), ("s", "e"), ("se", "t"), ("t", "i")]
    pieces += ["".join(pair) for pair in merges]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    vocab |= {f"<extra_id_{i}>": len(vocab) + i for i in range(CODE["vocab_size"] - len(vocab))}
    return RobertaTokenizer(vocab=vocab, merges=merges)


def with_tokens(*tokens: str):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(list(tokens))
    return tokenizer


@dataclass
class SentencePiece:
    """The tokenizer of an older repository: `spiece.model` and `tokenizer_config.json`, without `tokenizer.json`."""

    extra_ids: int

    def save_pretrained(self, folder: Path) -> None:
        from sentencepiece import sentencepiece_model_pb2  # Reading the file needs it as well.

        model = sentencepiece_model_pb2.ModelProto()
        model.trainer_spec.model_type = model.trainer_spec.UNIGRAM
        model.trainer_spec.unk_id = 2
        kinds = {"<pad>": 3, "</s>": 3, "<unk>": 2}
        vocab = make_tokenizer().get_vocab()
        for piece in sorted(vocab, key=vocab.get):
            if not piece.startswith("<extra_id_"):
                model.pieces.add(piece=piece, score=0.0 if piece in kinds else -3.0, type=kinds.get(piece, 1))
        (folder / "spiece.model").write_bytes(model.SerializeToString())
        saved = {"tokenizer_class": "T5Tokenizer", "extra_ids": self.extra_ids, "model_max_length": 512}
        (folder / "tokenizer_config.json").write_text(json.dumps(saved))


# Formats of weights


def in_one_file(weights, folder: Path) -> None:
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def in_pieces(weights, folder: Path) -> None:
    save_torch_state_dict(weights, folder, max_shard_size="100KB")
    assert (folder / "model.safetensors.index.json").exists()


def pickled(weights, folder: Path) -> None:
    torch.save(weights, folder / "pytorch_model.bin")


def in_bfloat16(weights, folder: Path) -> None:
    in_one_file({name: value.bfloat16() for name, value in weights.items()}, folder)


def in_float16(weights, folder: Path) -> None:
    pickled({name: value.half() for name, value in weights.items()}, folder)


def as_variant(weights, folder: Path) -> None:
    save_file({name: value.half() for name, value in weights.items()}, folder / "model.fp16.safetensors")


def encoder_alone(weights, folder: Path) -> None:
    in_one_file({name: value for name, value in weights.items() if name.startswith(("shared", "encoder"))}, folder)


@dataclass
class Backbone:
    """A checkpoint on the Hub: its config, its tokenizer, its weights, and the options to load it."""

    saved: dict = field(default_factory=lambda: V1_1)
    tokenizer: Callable = make_tokenizer
    write: Callable = in_one_file
    stock: type[PreTrainedModel] = T5ForConditionalGeneration
    options: dict = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        folder = folder / self.options.get("subfolder", "")
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(self.saved))
        torch.manual_seed(0)
        weights = self.stock(self.stock.config_class(**self.saved)).state_dict()
        weights = {name: value.clone() for name, value in weights.items() if "embed_tokens" not in name}
        if self.saved.get("tie_word_embeddings", True):
            del weights["lm_head.weight"]
        else:
            weights["lm_head.weight"] = torch.randn_like(weights["lm_head.weight"])
        self.write(weights, folder)
        self.tokenizer().save_pretrained(folder)


BACKBONES = {
    "T5": Backbone(V1_0),
    "T5 v1.1, FLAN-T5": Backbone(V1_1),
    "UL2, FLAN-UL2": Backbone(V1_1 | {"feed_forward_proj": "gated-silu"}),
    "mT5, mT0, Aya": Backbone(
        V1_1 | {"model_type": "mt5"}, lambda: SentencePiece(0), pickled, MT5ForConditionalGeneration
    ),
    "ByT5": Backbone(V1_1 | {"vocab_size": 384, "num_layers": 3, "num_decoder_layers": 1}, of_bytes, pickled),
    "CodeT5": Backbone(CODE, of_code, pickled),
    "CodeT5+ 220m, 770m": Backbone(CODE | {"torch_dtype": "float16"}, of_code, in_float16),
    "bfloat16 weights": Backbone(V1_1 | {"torch_dtype": "bfloat16"}, write=in_bfloat16),
    "in several files": Backbone(write=in_pieces),
    "`pytorch_model.bin`": Backbone(write=pickled),
    "`variant='fp16'`": Backbone(write=as_variant, options={"variant": "fp16"}),
    "`subfolder=`": Backbone(options={"subfolder": "deep/down"}),
    "a vocabulary grown before": Backbone(V1_1 | {"vocab_size": 138}, lambda: with_tokens("new", "more", "yet")),
    "`<lexical>` in its tokenizer": Backbone(tokenizer=lambda: with_tokens("<lexical>", "new")),
    "a tokenizer of SentencePiece alone": Backbone(V1_0, lambda: SentencePiece(100)),
}


def config_alone(**saved) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(V1_1 | saved))

    return save


REFUSED = {
    "UMT5, Pile-T5": config_alone(model_type="umt5", scalable_attention=True),
    "LongT5": config_alone(model_type="longt5", encoder_attention_type="transient-global"),
    "Switch": config_alone(model_type="switch_transformers", num_experts=8),
    "CodeT5+ 2b and above": config_alone(model_type="codet5p"),
    "Sentence-T5": Backbone(V1_1 | {"architectures": ["T5EncoderModel"]}, write=encoder_alone).save,
}


@cache
def folder_of(row: str) -> Path:
    folder = Path(KEPT.name) / "backbones" / str(list(BACKBONES).index(row))
    BACKBONES[row].save(folder)
    return folder


def load(model_name: str, row: str, folder: str | Path | None = None) -> PreTrainedModel:
    backbone = BACKBONES[row]
    model_class = backbone.stock if model_name == "T5" else T5WithFusion
    return model_class.from_pretrained(folder or folder_of(row), **backbone.options).eval()


def batch_for(model_name: str, row: str) -> dict[str, torch.Tensor]:
    """Return the processor's inputs for two texts. The plain model gets no vectors."""
    processor = make_processor(row)
    vectors = torch.nn.functional.normalize(torch.randn(3, 384, generator=torch.Generator().manual_seed(0)), dim=-1)
    vectors = [vectors[0], vectors[1:]] if model_name == "T5WithFusion" else False
    return dict(processor(TEXTS, lexical_embeds=vectors, text_target=TEXTS[::-1]))


def make_processor(row: str) -> T5FusionProcessor:
    options = {name: value for name, value in BACKBONES[row].options.items() if name == "subfolder"}
    tokenizer = AutoTokenizer.from_pretrained(folder_of(row), **options)
    return T5FusionProcessor(tokenizer, None, lexical_source="given")


def without(batch: dict, *names: str) -> dict:
    return {name: value for name, value in batch.items() if name not in names}


def trained(model_name: str, row: str) -> tuple[PeftModel, dict[str, torch.Tensor]]:
    model, batch = load(model_name, row), batch_for(model_name, row)
    fused = model_name == "T5WithFusion"
    torch.manual_seed(0)
    peft_model = get_peft_model(model, model.lora_config() if fused else LoraConfig(task_type="SEQ_2_SEQ_LM"))
    optimizer = torch.optim.AdamW([p for p in peft_model.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(6):
        losses.append(peft_model(**batch).loss)
        losses[-1].backward()
        if fused:
            gradients = [p.grad for name, p in peft_model.named_parameters() if ".default.projection.weight" in name]
            assert gradients and gradients[0].abs().max() > 0, "the fusion layer gets no gradient"
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0], f"the loss goes {', '.join(f'{loss:.4f}' for loss in losses)}"
    return peft_model, batch


# The checks. Each takes a row, and "T5WithFusion" or "T5", which stands for the stock class.


def exact(model_name: str, row: str) -> None:
    fused, stock, batch = load(model_name, row), load("T5", row), batch_for("T5", row)
    assert torch.equal(logits_of(fused, batch), logits_of(stock, batch)), "the logits differ"
    assert torch.equal(fused(**batch).loss, stock(**batch).loss), "the losses differ"
    for beams in (1, 3):
        options = without(batch, "labels") | {"num_beams": beams, "max_new_tokens": 6, "do_sample": False}
        assert torch.equal(fused.generate(**options), stock.generate(**options)), (
            f"it generates otherwise, {beams} beams"
        )


def trains(model_name: str, row: str) -> None:
    trained(model_name, row)


def reloads(model_name: str, row: str) -> None:
    """Reload the adapter on its base model, and the whole model with the adapter merged."""
    peft_model, batch = trained(model_name, row)
    with TemporaryDirectory() as folder:
        peft_model.save_pretrained(f"{folder}/adapter")
        expected = [logits_of(peft_model, batch)]
        merged = peft_model.merge_and_unload()
        merged.save_pretrained(f"{folder}/whole")
        expected.append(logits_of(merged, batch))
        reloaded_logits = in_another_process(reloaded, model_name, row, str(folder_of(row)), folder, batch)
    for what, numbers, known in zip(("adapter", "whole model"), reloaded_logits, expected, strict=True):
        assert torch.equal(torch.from_numpy(numbers), known.float()), f"{what}: the logits differ"


def reloaded(model_name: str, row: str, backbone: str, folder: str, batch):
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model_class = BACKBONES[row].stock if model_name == "T5" else T5WithFusion
    on_backbone = PeftModel.from_pretrained(load(model_name, row, backbone), f"{folder}/adapter")
    return [
        logits_of(model, batch).float().numpy()
        for model in (on_backbone, model_class.from_pretrained(f"{folder}/whole"))
    ]


def processes(model_name: str, row: str) -> None:
    """A reloaded processor makes the same inputs of a text, with the model's placeholder, and decodes them."""
    processor, model, batch = make_processor(row), load(model_name, row), batch_for(model_name, row)
    with TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        again = AutoProcessor.from_pretrained(folder)
    ids = again(TEXTS, lexical_embeds=[batch["lexical_embeds"][0, 0], batch["lexical_embeds"][1]])["input_ids"]
    assert torch.equal(ids, batch["input_ids"]), "other ids"
    assert (ids == model.config.lexical_token_id).sum(1).tolist() == [1, 2], "another placeholder than the model's"
    assert again.batch_decode(ids, skip_special_tokens=True) == TEXTS, "another text"


def generates(model_name: str, row: str) -> None:
    model, batch = load(model_name, row), without(batch_for(model_name, row), "labels")
    options = {"max_new_tokens": 3, "output_logits": True, "return_dict_in_generate": True}
    logits = model.generate(**batch, **options).logits[0]
    if model_name == "T5WithFusion":
        turned = batch | {"lexical_embeds": batch["lexical_embeds"].flip(-1)}
        assert not torch.equal(model.generate(**turned, **options).logits[0], logits), "the vectors have no effect"
        beams = model.generate(**batch, num_beams=3, num_return_sequences=2, max_new_tokens=3)
        assert beams.shape[0] == 4


CHECKS = {
    "without vectors the stock class, bit for bit": (exact, ("T5WithFusion",)),
    "trains": (trains, ("T5", "T5WithFusion")),
    "reloads bit for bit": (reloads, ("T5", "T5WithFusion")),
    "processor": (processes, ("T5WithFusion",)),
    "generates": (generates, ("T5", "T5WithFusion")),
}


def opens(model_name: str, row: str) -> None:
    with TemporaryDirectory() as folder, chdir(folder):  # The sentence then names the row and no folder.
        REFUSED[row](Path(row))
        T5WithFusion(row)


def make() -> Table:
    table = Table(
        "Base models",
        "Each base model has random weights and small sizes. The check writes its config, tokenizer and files in "
        "the form of the checkpoint on the Hub, and downloads nothing. *Trains*: with vectors, the "
        "loss falls and the fusion layer has gradients. *Reloads*: in another process, the adapter on its base model "
        "and the whole model with the adapter merged. *Processor*: saved and reloaded, it produces the ids that the "
        "model expects, and decodes them to the text.",
        list(CHECKS),
    )
    for row in BACKBONES:
        for column, (check, models) in CHECKS.items():
            table.add(row, column, check, row, models=models)
            if table.refused(row):
                break
    for row in REFUSED:
        table.add(row, next(iter(CHECKS)), opens, row, models=("T5WithFusion",))
    return table
