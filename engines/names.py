"""The names of the engines, each with a description."""

REFERENCE = "torch"  # the engine that the others are compared with
ENGINES = {
    REFERENCE: "transformers' own `generate`, on any device.",
    "fp32": "faster on a CPU, with the same tokens.",
    "bf16": "faster than fp32, but some tokens differ.",
    "int8": "faster than bf16, but more tokens differ.",
    "auto": "fp32 if it can run this model, otherwise torch.",
}


def check_engine(name: str) -> None:
    """Raise ValueError if there is no engine of this name."""
    if name not in ENGINES:
        raise ValueError(f"there is no engine {name!r}; expected one of {', '.join(ENGINES)}.")
