"""PEFT: a model cannot name layers of its own that train with every adapter, as classification heads do.

`get_peft_model` adds "classifier" and "score" to `modules_to_save` for sequence classification, so that a new head
trains and is saved. A model that brings another new layer has no such place: the layer stays frozen at its random start
unless each user names it. Proposed: `BaseTuner.inject_adapter` and `PeftModel.add_adapter` extend `modules_to_save` of a
new adapter by the model's `_peft_modules_to_save`, a list of names, where it has one.
"""

import peft
import torch
from peft import LoraConfig, get_peft_model
from transformers import T5Config, T5ForConditionalGeneration, T5ForSequenceClassification

config = T5Config(vocab_size=99, d_model=64, d_kv=16, d_ff=64, num_layers=1, num_heads=4, num_labels=2)


class WithALayer(T5ForConditionalGeneration):
    _peft_modules_to_save = ("new_layer",)

    def __init__(self, config):
        super().__init__(config)
        self.new_layer = torch.nn.Linear(8, config.d_model)


def trains(model, task, layer):
    peft_model = get_peft_model(model, LoraConfig(task_type=task, target_modules=["q", "v"]))
    return any(layer in name and parameter.requires_grad for name, parameter in peft_model.named_parameters())


head = trains(T5ForSequenceClassification(config), "SEQ_CLS", "classification_head")
layer = trains(WithALayer(config), "SEQ_2_SEQ_LM", "new_layer")
print(f"peft {peft.__version__}: a classification head trains: {head}; a new layer of the model's own: {layer}")
