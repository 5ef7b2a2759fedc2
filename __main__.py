"""The program: `t5fusion`, or `python -m t5fusion`, which `accelerate launch -m t5fusion train ...` needs."""

from .common.console import end_stopped


def main() -> None:
    """Run the program. Ctrl-C ends it with a sentence and exit code 130, even while modules are imported."""
    try:
        from .cli.app import main as run_program  # The import is inside, so that Ctrl-C during it is caught too.

        run_program()
    except KeyboardInterrupt:
        end_stopped()


if __name__ == "__main__":
    main()
