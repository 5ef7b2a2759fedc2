"""What `import t5fusion` changes in PEFT and in the Trainer, for fused models only.

`peft_hook` lets the fusion layer train with every adapter, `trainer_hook` starts it and reports at the end of training,
and `push_hook` puts code and config beside an adapter that the Trainer or PEFT pushes. Each says how to switch it off.
"""

from . import peft_hook, push_hook, trainer_hook


def register() -> None:
    """Install all three, once."""
    peft_hook.register()
    trainer_hook.register()
    push_hook.register()
