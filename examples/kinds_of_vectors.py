"""Two kinds of vectors of different widths: a colour and a shape. The model names both.

    python examples/kinds_of_vectors.py

Each kind has a name, a width and a projector. A vector may become several tokens.
"""

import numpy as np
import torch
from colours import draw
from peft import get_peft_model
from transformers import Trainer, TrainingArguments

from t5fusion import DataCollatorWithFusion, T5FusionProcessor, T5WithFusion, VectorKind

BASE = "tiny_t5_v2"  # or "google/flan-t5-small"
SHAPES = ("circle", "square", "star", "cross")
KINDS = {"colour": 3, "shape": VectorKind(dim=8, tokens=2)}
CENTRES = np.random.default_rng(0).normal(size=(len(SHAPES), 8))


def draw_rows(count, seed):
    """Return vectors by kind, float32 (count, dim) each, and the targets."""
    colours, names = draw(count, seed)
    random = np.random.default_rng((seed, 1))  # independent of the numbers with which the colours are drawn
    shapes, noise = random.integers(0, len(SHAPES), count), random.normal(0, 0.1, (count, 8))
    targets = [f"{name} {SHAPES[shape]}" for name, shape in zip(names, shapes, strict=True)]
    return {"colour": colours, "shape": (CENTRES[shapes] + noise).astype("float32")}, targets


processor = T5FusionProcessor(BASE, vectors=KINDS, lexical_encoder=None, lexical_source="given")
vectors, targets = draw_rows(480, seed=0)
# Placeholders stand before the text, or in it: <lexical> for the first kind, <lexical:shape> for the other.
rows = processor.rows(["describe: figure"] * 480, targets, lexical_embeds=vectors)

model = T5WithFusion(BASE, vectors=KINDS, dtype=torch.float32)
model = get_peft_model(model, model.lora_config())
arguments = TrainingArguments(
    "runs/kinds_of_vectors/checkpoints", num_train_epochs=2, learning_rate=4e-3, per_device_train_batch_size=16,
    save_strategy="no", report_to="none",
)  # fmt: skip
Trainer(model, arguments, DataCollatorWithFusion(processor), rows).train()

model.eval()
vectors, targets = draw_rows(50, seed=1)
for given in (vectors, {"colour": vectors["colour"]}):  # a row may lack the vectors of a kind
    inputs = processor(["describe: figure"] * 50, lexical_embeds=given)
    answers = processor.batch_decode(model.generate(**inputs, max_new_tokens=12), skip_special_tokens=True)
    right = sum(answer == target for answer, target in zip(answers, targets, strict=True))
    print(f"With {' and '.join(given)}: {right} of 50 new rows are right, such as: {'; '.join(answers[:3])}.")
