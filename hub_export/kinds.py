"""The kinds of bundles."""

from typing import Literal, get_args

Kind = Literal["adapter", "standalone", "merged", "fused"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def parse_kind(name: str) -> Kind:
    """Return the kind with this name, or "fused" for its earlier name, "base".

    Raises:
        ValueError: There is no such kind.
    """
    kind = "fused" if name == "base" else name
    if kind not in KINDS:
        raise ValueError(f"`kind` is {name!r}; expected one of {', '.join(KINDS)}.")
    return kind
