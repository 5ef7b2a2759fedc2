"""The words of --set NAME=VALUE."""

from typing import Any

from ..finetune.plain_yaml import read_yaml


def parse_settings(words: list[str], example: str) -> dict[str, Any]:
    """Return the settings in words such as "weight_decay=0.01".

    Args:
        example: a word, for errors.

    Raises:
        ValueError: a word has no "=", a value is no YAML, or a name is given twice.
    """
    settings: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals):
            raise ValueError(f"--set {word} has no value; expected NAME=VALUE, such as --set {example}.")
        if name in settings:
            raise ValueError(f"--set {name} was given twice. Give it once: only one value would be used.")
        try:
            settings[name] = read_yaml(value)
        except ValueError as error:
            raise ValueError(f"--set {name}: {value!r} is no value in YAML ({error}).") from error
    return settings
