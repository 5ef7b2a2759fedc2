"""Two adapters on one fused model: one names colours in English, the other in French.

    python examples/many_adapters.py

The base model is in memory once. Each adapter has its own LoRA weights and its own fusion layer.
"""

import torch
from colours import draw
from peft import PeftModel, get_peft_model
from transformers import Trainer, TrainingArguments

from t5fusion import DataCollatorWithFusion, T5FusionProcessor, T5WithFusion

BASE = "tiny_t5_v2"  # or "google/flan-t5-small"
QUESTION = "describe: colour"
FRENCH = {
    "black": "noir", "white": "blanc", "red": "rouge", "green": "vert", "blue": "bleu", "yellow": "jaune",
    "orange": "orange", "purple": "violet", "pink": "rose", "brown": "marron",
}  # fmt: skip

processor = T5FusionProcessor(BASE, vectors={"colour": 3}, lexical_encoder=None, lexical_source="given")
colours, english = draw(320)
french = [FRENCH[name] for name in english]


def train(model, targets):
    rows = processor.rows([QUESTION] * 320, targets, lexical_embeds=colours)
    arguments = TrainingArguments(
        "runs/many_adapters/checkpoints", num_train_epochs=2, learning_rate=2e-3, per_device_train_batch_size=16,
        save_strategy="no", report_to="none",
    )  # fmt: skip
    Trainer(model, arguments, DataCollatorWithFusion(processor), rows).train()


base = T5WithFusion(BASE, vectors={"colour": 3}, dtype=torch.float32)
model = get_peft_model(base, base.lora_config(), adapter_name="english")
train(model, english)
model.add_adapter("french", base.lora_config())
model.set_adapter("french")
train(model, french)
model.save_pretrained("runs/many_adapters")  # a folder for each adapter

# In another program: one fused model, with both adapters on it.
base = T5WithFusion(BASE, vectors={"colour": 3}, dtype=torch.float32)
model = PeftModel.from_pretrained(base, "runs/many_adapters/english", adapter_name="english")
model.load_adapter("runs/many_adapters/french", adapter_name="french")
inputs = processor([QUESTION] * 5, lexical_embeds=draw(5, seed=1)[0])
for language in ("english", "french"):
    model.set_adapter(language)
    answers = processor.batch_decode(model.generate(**inputs, max_new_tokens=5), skip_special_tokens=True)
    print(f"{language}: {', '.join(answers)}")
