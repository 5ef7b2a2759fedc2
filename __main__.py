"""The program `t5fusion`, which is also `python -m t5fusion`: for `accelerate launch -m t5fusion train ...`."""

import sys


def main() -> None:
    """Run the program. Ctrl-C ends it with a sentence and exit code 130, also while modules are imported."""
    try:
        from .cli.app import main as run

        run()
    except KeyboardInterrupt:
        print("t5fusion: stopped.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
