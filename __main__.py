"""The program `t5fusion`, which is also `python -m t5fusion`: for `accelerate launch -m t5fusion train ...`."""

from .common.console import end_stopped


def main() -> None:
    """Run the program. Ctrl-C ends it with a sentence and exit code 130, also while modules are imported."""
    try:
        from .cli.app import main as run

        run()
    except KeyboardInterrupt:
        end_stopped()


if __name__ == "__main__":
    main()
