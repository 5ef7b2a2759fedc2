"""PEFT: a model cannot name its own layers that should train with every adapter, as classification heads do.

`get_peft_model` adds "classifier" and "score" to `modules_to_save` for sequence classification, so a new head trains
and is saved. A model with another new layer has no way to ask for the same: the layer stays frozen with its random
weights, unless each user names it. Proposal: `BaseTuner.inject_adapter` and `PeftModel.add_adapter` add the names in
the model's `_peft_modules_to_save`, if it has that attribute, to a new adapter's `modules_to_save`.
"""

import peft
import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification, T5Config, T5ForConditionalGeneration

config = T5Config(vocab_size=99, d_model=64, d_kv=16, d_ff=64, num_layers=1, num_heads=4)
bert = BertConfig(vocab_size=99, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)


class T5WithNewLayer(T5ForConditionalGeneration):
    _peft_modules_to_save = ("new_layer",)

    def __init__(self, config):
        super().__init__(config)
        self.new_layer = torch.nn.Linear(8, config.d_model)


def trains(model, task, targets, layer):
    peft_model = get_peft_model(model, LoraConfig(task_type=task, target_modules=targets))
    return any(layer in name and parameter.requires_grad for name, parameter in peft_model.named_parameters())


head = trains(BertForSequenceClassification(bert), "SEQ_CLS", ["query", "value"], "classifier")
new_layer = trains(T5WithNewLayer(config), "SEQ_2_SEQ_LM", ["q", "v"], "new_layer")
print(f"peft {peft.__version__}: a classification head trains: {head}; a new layer of the model's own: {new_layer}")
