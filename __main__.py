"""`python -m t5fusion`, for `accelerate launch -m t5fusion train ...`."""

from .cli.app import main

if __name__ == "__main__":
    main()
