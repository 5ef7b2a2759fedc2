"""Parse commands: make options from dataclasses, accept former names, and refuse an option that is passed twice."""

import dataclasses
import inspect
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
from typer.core import TyperCommand, TyperGroup

from ..common.panels import HELP, PANELS

Command = TypeVar("Command", bound=Callable)
Options = TypeVar("Options")
FORMER_NAMES = {  # earlier names of options, by command and parameter; still accepted, but not shown by --help
    ("train", "base_model"): "--base",
    ("demo", "base_model"): "--base",
    ("export", "base_model"): "--backbone",
    ("verify", "fused_model"): "--base",
}
# Some releases of typer use click's class, and others use a copy of it.
UsageError: Any = typer.BadParameter.__mro__[1]


class Stopped(Exception):
    """The error for Ctrl-C. Typer would end a KeyboardInterrupt in its own way, which differs among its releases."""


class Program(TyperGroup):
    """The group of all commands. Ctrl-C in it raises `Stopped`."""

    def get_params(self, ctx):
        return _without_types_of_flags(super().get_params(ctx))

    def make_context(self, *args, **kwargs):
        try:
            return super().make_context(*args, **kwargs)
        except KeyboardInterrupt:
            raise Stopped from None

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Stopped from None


class OneValueEach(TyperCommand):
    """A command that refuses an option that is passed twice; click would silently take the last value.

    Its --help shows the panels in the order of `common.panels`, and names arguments in capitals.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.params.sort(key=_place_in_help)
        for argument in self.params:
            if argument.param_type_name == "argument" and argument.metavar is None:
                argument.metavar = argument.name.upper()

    def get_help_option(self, ctx):
        option = super().get_help_option(ctx)
        option.rich_help_panel = HELP  # Otherwise it has a panel of its own, above the others.
        return option

    def get_params(self, ctx):
        return _without_types_of_flags(super().get_params(ctx))

    def make_parser(self, ctx):
        parser = super().make_parser(ctx)
        for option in self.params:
            former_name = FORMER_NAMES.get((self.name, option.name))
            if former_name:
                parser.add_option(obj=option, opts=[former_name], dest=option.name)
        return parser

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        try:
            _, _, given = self.make_parser(ctx).parse_args(list(args))
        except UsageError as error:
            error.ctx = error.ctx or ctx  # The error names the --help of this command.
            raise
        for option, times in Counter(each for each in given if each.param_type_name == "option").items():
            if times > 1 and not (option.multiple or getattr(option, "is_flag", False)):
                how_often = "twice" if times == 2 else f"{times} times"
                raise ValueError(f"{option.opts[0]} was given {how_often}. Pass it once: only one value would be used.")
        return super().parse_args(ctx, args)


class Commands(typer.Typer):
    """A Typer whose commands are all `OneValueEach`. Their --help is their docstring, without its line breaks."""

    def callback(self, **options):
        return super().callback(**{"cls": Program, **options})

    def command(self, name: str | None = None, **options):
        def add(command: Command) -> Command:
            paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
            help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
            return super(Commands, self).command(name, **{"cls": OneValueEach, "help": help, **options})(command)

        return add


def _place_in_help(parameter) -> tuple[int, bool]:
    """Return the key that sorts parameters for --help: arguments first, and then the panels in their order.

    In a panel, an option that may be passed several times (--set) comes last.
    """
    panel = getattr(parameter, "rich_help_panel", None)
    return (PANELS.index(panel), parameter.multiple) if panel else (-1, False)


def _without_types_of_flags(parameters: list) -> list:
    """Remove "<bool>" from the --help of flags, which take no value, and return the parameters."""
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return parameters


def with_options_of(*classes: type) -> Callable[[Command], Command]:
    """Give a command an option for each field of these dataclasses. The command gets their values as `**fields`."""

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command)
        parameters = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        for options in classes:
            parameters += [_parameter_of(field) for field in dataclasses.fields(options) if _is_option(field)]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def _is_option(field: dataclasses.Field) -> bool:
    return field.metadata.get("command_line", True)


def _parameter_of(field: dataclasses.Field) -> inspect.Parameter:
    """Return the parameter from which typer makes the option of a field (see `finetune.options.option`)."""
    metadata, type_ = field.metadata, field.type
    name, help = metadata.get("opposite", (field.name, metadata["help"]))
    default = False if "opposite" in metadata else field.default
    settings: dict[str, Any] = {"help": help, "rich_help_panel": metadata["panel"]}
    if get_origin(type_) is Literal:  # Typer reads this type only from release 0.19 on.
        settings |= one_of(get_args(type_))
        settings["metavar"] = metadata.get("metavar", settings["metavar"])
        type_ = str
    if "parse" in metadata:
        type_, settings["parser"], settings["metavar"] = str | None, metadata["parse"], "NAMES"
    # Without an explicit name, Typer would add a second flag, --no-...
    flag = [f"--{name.replace('_', '-')}"] if type_ is bool else []
    annotation = Annotated[type_, typer.Option(*flag, **settings)]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def one_of(values: Sequence[str]) -> dict[str, Any]:
    """Return settings of an option that takes one of `values`: --help names them, and TAB completes them."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return {"metavar": f"[{'|'.join(values)}]", "autocompletion": complete}


def options_from(options: type[Options], fields: dict[str, Any]) -> Options:
    """Return a dataclass of options, made from the `**fields` of a command.

    Raises:
        ValueError: The dataclass refuses a value. The message names the option.
    """
    values = {}
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        if not _is_option(field):
            continue
        opposite, _ = field.metadata.get("opposite", (None, None))
        values[field.name] = not fields[opposite] if opposite else fields[field.name]
    try:
        return options(**values)
    except ValueError as error:  # Its message names fields, and the user knows them as options.
        raise ValueError(re.sub(r"`(\w+)`", lambda match: _option_of(match[1], values), str(error))) from error


def _option_of(name: str, fields: dict[str, Any]) -> str:
    """Return the option of a field, or the name itself in backticks if it is not a field."""
    return f"--{name.replace('_', '-')}" if name in fields else f"`{name}`"


def refuse_idle(context: typer.Context, idle_options: dict[str, tuple[str, ...]]) -> None:
    """Raise ValueError if the command line holds an option that has no effect because of a second option.

    Args:
        context: The context of the command, which knows what is on the command line.
        idle_options: For each parameter, the parameters that have no effect if it is passed.
    """
    names = {option.name: option.opts[0] for option in context.command.params}
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    for option, others in idle_options.items():
        for other in others:
            if {option, other} <= given:
                raise ValueError(f"{names[other]} has no effect with {names[option]}. Leave one of them out.")
