"""`python -m t5fusion.finetune`, for `accelerate launch -m t5fusion.finetune train ...`."""

from .cli import main

if __name__ == "__main__":
    main()
