"""The option --set NAME=VALUE of `train` and `generate`."""

from typing import Any

import typer

from ..finetune.plain_yaml import read_yaml


def settings_option(panel: str, help: str) -> Any:
    """Return the option --set in a panel of --help.

    Args:
        panel: One of `common.panels`.
        help: A sentence that says which names can be set.
    """
    help = f"{help} Can be passed several times."
    return typer.Option("--set", metavar="NAME=VALUE", rich_help_panel=panel, help=help)


def parse_settings(assignments: list[str], example: str) -> dict[str, Any]:
    """Return the settings in texts such as "weight_decay=0.01": each value by its name.

    Args:
        assignments: The values of --set.
        example: An assignment to show in errors.

    Raises:
        ValueError: A text has no name or no "=", a value is not YAML, or a name is set twice.
    """
    settings: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not (name and equals):
            missing = "value" if name else "name"
            raise ValueError(f"--set {assignment} has no {missing}; expected NAME=VALUE, such as --set {example}.")
        if name in settings:
            raise ValueError(f"--set {name} was given twice. Pass it once: only one value would be used.")
        try:
            settings[name] = read_yaml(value)
        except ValueError as error:
            raise ValueError(f"--set {name}: {value!r} is not a value in YAML ({error}).") from error
    return settings
