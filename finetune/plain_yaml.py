"""Read and write YAML as most people understand it: `no` is a text and `1e-4` a number, as in YAML 1.2."""

import re
from typing import Any, ClassVar

import yaml
from yaml.constructor import ConstructorError


class _Reader(yaml.SafeLoader):
    """Reads YAML 1.2, and refuses a key that is given twice. PyYAML reads YAML 1.1: `no` is false, `1e-4` a text."""

    yaml_implicit_resolvers: ClassVar[dict] = {}

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                mark = node.value[index][0].start_mark
                raise ConstructorError(None, None, f"{key} is given twice", mark)
        return super().construct_mapping(node, deep)


class _Writer(yaml.SafeDumper):
    """Puts a text into quotes if YAML 1.1 or YAML 1.2 would not read it as text."""


for _tag, _pattern in {
    "null": r"~|null|",
    "bool": r"true|True|false|False",
    "int": r"[-+]?(0|[1-9][0-9]*)",
    "float": r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.inf|\.nan",
}.items():
    for _class in (_Reader, _Writer):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), None)


def read_yaml(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        ValueError: The text is not YAML, or gives a key twice.
    """
    try:
        return yaml.load(text, _Reader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def write_yaml(value: Any) -> str:
    """Return a mapping as YAML, in the order of its keys."""
    return yaml.dump(value, Dumper=_Writer, sort_keys=False, allow_unicode=True, width=110)
