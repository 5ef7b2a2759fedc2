"""A training with the Trainer in six steps. The model describes a file, from its name and an embedding of the name.

python examples/six_steps.py
"""

import torch
from peft import get_peft_model
from transformers import Trainer, TrainingArguments

from t5fusion import DataCollatorWithFusion, T5FusionProcessor, T5WithFusion

BASE = "tiny_t5_v2"  # the small T5 in this package; or "google/flan-t5-small", or any other T5
FILES = {
    "app_config": "It configures the application.",
    "read_settings": "It reads the settings from a file.",
    "user_login": "It lets a user log in.",
    "send_mail": "It sends a mail to a list of people.",
    "parse_date": "It turns a text into a date.",
    "draw_chart": "It draws a chart of the numbers.",
    "test_login": "It tests that a user can log in.",
    "backup_files": "It copies all files to another disk.",
}

# 1. A vector for each row. Here an encoder makes the vectors from the names; your vectors may be of anything.
processor = T5FusionProcessor(BASE, template="Filename: {text}")
vectors = processor.encode(list(FILES))

# 2. Rows: token ids, labels and vectors.
rows = processor.rows(list(FILES), list(FILES.values()), lexical_embeds=vectors)

# 3. The model: a T5 with a layer that projects a vector to a token embedding.
model = T5WithFusion(BASE, dtype=torch.float32)

# 4. LoRA, or a different adapter of PEFT. The fusion layer is trained and saved with it.
model = get_peft_model(model, model.lora_config())

# 5. The Trainer. The collator puts the token <lexical> before each text, and the vector takes its place.
arguments = TrainingArguments(
    "runs/six_steps/checkpoints", num_train_epochs=40, learning_rate=2e-3, save_strategy="no", report_to="none"
)
Trainer(model, arguments, DataCollatorWithFusion(processor), rows).train()

# 6. Save the adapter, and the processor with its tokenizer.
model.save_pretrained("runs/six_steps")
processor.save_pretrained("runs/six_steps")

# Load them again, as another program would.
model = T5WithFusion.from_pretrained("runs/six_steps")
processor = T5FusionProcessor.from_pretrained("runs/six_steps")
inputs = processor(["app_config", "send_mail"])
print(processor.batch_decode(model.generate(**inputs, max_new_tokens=20), skip_special_tokens=True))
