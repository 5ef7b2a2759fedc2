"""Your own vectors: a vector is a colour (red, green, blue), and the model writes the colour's name.

    python examples/own_vectors.py

The text is the same in every row, so only the vector tells the model the answer.
"""

import torch
from colours import draw
from peft import get_peft_model
from transformers import Trainer, TrainingArguments

from t5fusion import DataCollatorWithFusion, T5FusionProcessor, T5WithFusion

BASE = "tiny_t5_v2"  # or "google/flan-t5-small"
QUESTION = "describe: colour"

# One kind of vectors, of width 3. "given": each call passes the vectors, and no encoder makes them from a text.
processor = T5FusionProcessor(BASE, vectors={"colour": 3}, lexical_encoder=None, lexical_source="given")
colours, names = draw(320)
rows = processor.rows([QUESTION] * 320, names, lexical_embeds=colours)

model = T5WithFusion(BASE, vectors={"colour": 3}, dtype=torch.float32)
model = get_peft_model(model, model.lora_config())
arguments = TrainingArguments(
    "runs/own_vectors/checkpoints", num_train_epochs=3, learning_rate=2e-3, per_device_train_batch_size=16,
    save_strategy="no", report_to="none",
)  # fmt: skip
Trainer(model, arguments, DataCollatorWithFusion(processor), rows).train()
model.save_pretrained("runs/own_vectors")
processor.save_pretrained("runs/own_vectors")

model.eval()
colours, names = draw(100, seed=1)
inputs = processor([QUESTION] * 100, lexical_embeds=colours)
answers = processor.batch_decode(model.generate(**inputs, max_new_tokens=5), skip_special_tokens=True)
right = sum(answer == name for answer, name in zip(answers, names, strict=True))
print(f"{right} of 100 new colours got their right name, such as {', '.join(answers[:5])}.")
