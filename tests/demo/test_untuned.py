"""What the embedded base model writes before any training."""

import importlib.util
from pathlib import Path

import torch
from transformers import T5ForConditionalGeneration

from t5fusion import tiny_t5_v2
from t5fusion.demo.demo import DECODING, demo_processor, demo_rows
from t5fusion.finetune.generation import generate_texts

CORPUS = Path(__file__).parents[2] / "benchmarks" / "tiny_t5" / "corpus.py"


def test_the_untuned_model_writes_nothing_that_a_demo_should_not_show():
    spec = importlib.util.spec_from_file_location("corpus", CORPUS)
    corpus = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(corpus)
    unwanted = corpus.unwanted_pattern(["ass", "bitch", "cunt", "dick", "fuck", "shit", "whore"])
    assert unwanted.search("a sensational number of sexually") and not unwanted.search("the class of Sussex")
    processor = demo_processor("tiny_t5_v2", "body")
    names = [row.name for row in demo_rows()[1]][::4]
    rows = [{"input_ids": processor.tokenizer(processor.template.format(text=name))["input_ids"]} for name in names]
    model = T5ForConditionalGeneration.from_pretrained(tiny_t5_v2.PATH, dtype=torch.float32)
    texts = generate_texts(model, rows, processor, **DECODING)
    assert len(texts) > 150 and all(texts)
    assert [text for text in texts if unwanted.search(text)] == []
