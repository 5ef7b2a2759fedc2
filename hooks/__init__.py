"""What `import t5fusion` changes in PEFT and in transformers, and how to switch it off.

| what is changed | why | switch |
| --- | --- | --- |
| `BaseTuner.inject_adapter` | a new adapter trains and saves the fusion layer | PEFT |
| `PeftConfig.from_pretrained` | marks a config that was read, so that nothing is added to a saved adapter | PEFT |
| `get_base_model_state_dict`, `set_...` | finds the wrapped fusion layer even with prompt learning | PEFT |
| `PeftModel.__init__` | an adapter on a fused model gets the class in `adapter_class.py` | PEFT, PUSH |
| `CallbackHandler.__init__`: adds `FusionCallback` | checks collator and vectors, calls `fit_fusion` | TRAINER |
| `CallbackHandler.__init__`: adds `PushCallback` | a pushed adapter loads without this package | PUSH |
| `AutoPeftModel*.from_pretrained` | its error for an adapter that was not pushed says what to type | PUSH |

All changes act on fused models and their adapters only. For other models, PEFT and the Trainer work as before, with one
exception: a model without a fusion layer refuses the saved adapter of a fused model.

The switches are the environment variables T5FUSION_PEFT_HOOK, T5FUSION_TRAINER_HOOK and T5FUSION_PUSH_HOOK. If a switch
is 0 before `import t5fusion`, nothing in its rows is changed (`PeftModel.__init__` needs both at 0). If it is set to 0
later, the hooks do nothing.

The model itself cannot do this. PEFT calls no method of a model when it attaches an adapter
(docs/upstream/layers_that_train_with_an_adapter.py), and the Trainer passes its data set to callbacks only. Saving,
pushing and the model card need no hook: they are methods of `adapter_class.FusedAdapter`.

Apart from these hooks, `import t5fusion` registers the model type "t5_fusion" with transformers' Auto classes, and
gives it the row of "t5" in each of PEFT's tables of target modules.
"""

from functools import cache

from .. import modeling_t5fusion, processing_t5fusion  # noqa: F401  register the model type and its processor
from . import adapter_class, base_state, peft_hook, push_hook, trainer_hook
from .switches import PEFT, PUSH, TRAINER, is_on


@cache  # A second call would wrap the wrappers.
def register() -> None:
    """Install the hooks whose switch is on, once. (The model type is registered as soon as this module is imported.)"""
    if is_on(PEFT):
        peft_hook.register()
        base_state.register()
    if is_on(TRAINER):
        trainer_hook.register()
    if is_on(PUSH):
        push_hook.register()
    if is_on(PEFT) or is_on(PUSH):
        adapter_class.register()
