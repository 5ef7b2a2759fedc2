"""How arguments are parsed: an option that is given twice is refused, and Ctrl-C ends with a sentence."""

import sys
from collections import Counter

import typer
from typer.core import TyperCommand


class OneValueEach(TyperCommand):
    """A command that refuses an option which is given twice; click would take the last and say nothing.

    Ctrl-C ends it with a sentence and exit code 130.
    """

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        _, _, given = self.make_parser(ctx).parse_args(list(args))
        for option, times in Counter(each for each in given if each.param_type_name == "option").items():
            if times > 1 and not (option.multiple or getattr(option, "is_flag", False)):
                often = "twice" if times == 2 else f"{times} times"
                raise ValueError(f"{option.opts[0]} was given {often}. Give it once: only one value would be used.")
        return super().parse_args(ctx, args)

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # of which typer says nothing, or "Aborted.", depending on its release
            print("t5fusion: stopped.", file=sys.stderr)
            raise typer.Exit(130) from None


class Commands(typer.Typer):
    """A Typer all of whose commands are `OneValueEach`."""

    def command(self, name: str | None = None, **options):
        return super().command(name, **{"cls": OneValueEach, **options})
