"""transformers: with `gradient_accumulation_steps=N`, the Trainer trains a T5 on a loss that is N times too large.

T5's forward takes `**kwargs`. From that the Trainer concludes that T5 divides its loss by `num_items_in_batch`, so it
does not divide itself. But T5 ignores the argument: its losses are means over a batch, and the Trainer adds them up.
"""

import tempfile

import torch
import transformers
from transformers import PrinterCallback, T5Config, T5ForConditionalGeneration, Trainer, TrainingArguments

ROWS = [{"input_ids": [5 + row, 6, 1], "labels": [7, 8 + row, 1]} for row in range(8)]
print(f"transformers {transformers.__version__}: the first loss of eight rows")
for rows in (8, 2):
    torch.manual_seed(0)
    config = T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.0)
    config.decoder_start_token_id = 0
    with tempfile.TemporaryDirectory() as folder:
        options = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": 8 // rows, "max_steps": 1}
        options |= {
            "use_cpu": True,
            "report_to": "none",
            "save_strategy": "no",
            "logging_steps": 1,
            "disable_tqdm": True,
        }
        trainer = Trainer(T5ForConditionalGeneration(config), TrainingArguments(folder, **options), train_dataset=ROWS)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    print(f"in {8 // rows} batches of {rows}: {trainer.state.log_history[0]['loss']:.4f}")
