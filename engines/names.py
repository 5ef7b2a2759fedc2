"""The names of the engines."""

REFERENCE = "torch"  # the engine that runs unless another one is asked for
ENGINES = {
    REFERENCE: "transformers' own `generate`: the reference.",
    "fp32": "weights packed once: the same tokens, faster.",
    "bf16": "weights in bfloat16: faster still; some tokens differ.",
    "int8": "weights in int8: the fastest; more tokens differ.",
    "auto": "fp32 if it can run this model, else torch.",
}


def check_engine(name: str) -> None:
    """Raise ValueError if there is no engine of this name."""
    if name not in ENGINES:
        raise ValueError(f"there is no engine {name!r}; expected one of {', '.join(ENGINES)}.")
