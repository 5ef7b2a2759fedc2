"""The environment variables that switch the hooks off."""

import os

PEFT = "T5FUSION_PEFT_HOOK"
TRAINER = "T5FUSION_TRAINER_HOOK"
PUSH = "T5FUSION_PUSH_HOOK"


def is_on(switch: str) -> bool:
    """Return whether a hook is on. Each hook is on, unless its environment variable is "0"."""
    return os.environ.get(switch) != "0"
