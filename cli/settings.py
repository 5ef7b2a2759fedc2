"""The words of --set NAME=VALUE."""

import json
from typing import Any


def parse_settings(words: list[str]) -> dict[str, Any]:
    """Return the settings in words such as "temperature=0.7". A value that is no JSON is a text.

    Raises:
        ValueError: a word has no "=", or a name is given twice.
    """
    settings: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals):
            raise ValueError(f"--set {word} has no value; expected NAME=VALUE, such as --set temperature=0.7.")
        if name in settings:
            raise ValueError(f"--set {name} was given twice. Give it once: only one value would be used.")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings
