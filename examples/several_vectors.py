"""Several vectors per row: a row has one or two colours, and the model lists their names in order.

    python examples/several_vectors.py

Rows may have different numbers of vectors, or none. Each vector takes the place of one token.
"""

import numpy as np
import torch
from colours import draw
from peft import get_peft_model
from transformers import Trainer, TrainingArguments

from t5fusion import DataCollatorWithFusion, T5FusionProcessor, T5WithFusion

BASE = "tiny_t5_v2"  # or "google/flan-t5-small"


def draw_rows(count, seed):
    """Return the vectors of each row, float32 (1 or 2, 3), and the targets."""
    sizes = np.random.default_rng(seed).integers(1, 3, count)
    colours, names = draw(sizes.sum(), seed)
    ends = np.cumsum(sizes)
    targets = [" and ".join(names[end - size : end]) for end, size in zip(ends, sizes, strict=True)]
    return np.split(colours, ends[:-1]), targets


processor = T5FusionProcessor(BASE, vectors={"colour": 3}, lexical_encoder=None, lexical_source="given")
vectors, targets = draw_rows(320, seed=0)
rows = processor.rows(["describe: colours"] * 320, targets, lexical_embeds=vectors)

model = T5WithFusion(BASE, vectors={"colour": 3}, dtype=torch.float32)
model = get_peft_model(model, model.lora_config())
arguments = TrainingArguments(
    "runs/several_vectors/checkpoints", num_train_epochs=4, learning_rate=2e-3, per_device_train_batch_size=16,
    save_strategy="no", report_to="none",
)  # fmt: skip
Trainer(model, arguments, DataCollatorWithFusion(processor), rows).train()

model.eval()
vectors, targets = draw_rows(50, seed=1)
inputs = processor(["describe: colours"] * 50, lexical_embeds=vectors)
print(f"lexical_embeds: {tuple(inputs['lexical_embeds'].shape)}, with zeros where a row has only one vector")
answers = processor.batch_decode(model.generate(**inputs, max_new_tokens=12), skip_special_tokens=True)
right = sum(answer == target for answer, target in zip(answers, targets, strict=True))
print(f"{right} of 50 new rows are right, such as: {'; '.join(answers[:4])}.")
