"""Arguments and options that several commands take."""

from enum import Enum
from typing import Annotated

import typer

from ..common.panels import DATA, GENERATION, HUB, VECTORS
from ..engines.names import ENGINES
from ..finetune.vector_options import FORM, SCALES
from ..kinds_t5fusion import PROJECTORS

Data = Annotated[str, typer.Argument(help="JSONL, CSV, Parquet or Arrow file, or id of a data set on the Hub.")]
TextColumn = Annotated[
    str | None,
    typer.Option(rich_help_panel=DATA, help="Column of the input text. Leave it out if rows have vectors and no text."),
]
TargetColumn = Annotated[str, typer.Option(rich_help_panel=DATA, help="Column of the text to generate.")]
TrainedTextColumn = Annotated[
    str | None,
    typer.Option(rich_help_panel=DATA, help="Column of the input text. Default: as in the training."),
]
TrainedTargetColumn = Annotated[
    str | None,
    typer.Option(rich_help_panel=DATA, help="Column of the text to generate. Default: as in the training."),
]
TrainedLexicalColumn = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=VECTORS, help="Column of the text that the vector is made from. Default: as in the training."
    ),
]
TrainedVectorColumn = Annotated[
    list[str] | None,
    typer.Option(
        rich_help_panel=VECTORS,
        metavar="[KIND=]COLUMN",
        help="Column of the vectors themselves, or NumPy file NAME.npy with a row for each row. Pass it once for each "
        "kind of vectors. Default for a kind: as in the training.",
    ),
]
LexicalColumn = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=VECTORS, help="Column of the text that the vector is made from. Default: the input text."
    ),
]
VectorColumn = Annotated[
    list[str] | None,
    typer.Option(
        rich_help_panel=VECTORS,
        metavar=FORM,
        help="Column of the vectors themselves: in each row a list of numbers, several lists, or one number; or NumPy "
        "file NAME.npy with a row for each row. Pass it once for each kind of vectors, such as user=user_vec, "
        "user=user.npy or image=img:8:mlp. Options: the number of tokens per vector, "
        f"the projector ({', '.join(PROJECTORS)}), and the scale ({', '.join(SCALES)}).",
    ),
]
Encoding = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=DATA,
        help="Encoding of a CSV file, a .txt file or standard input, such as latin-1. Default: UTF-8.",
    ),
]
Trained = Annotated[
    str,
    typer.Argument(
        metavar="FOLDER", help="Folder that `t5fusion train` saved, a bundle, or the id of a Hub repository."
    ),
]
Revision = Annotated[
    str | None, typer.Option(rich_help_panel=HUB, help="Branch, tag or commit of a Hub repository. Default: main.")
]
Split = Annotated[str, typer.Option(rich_help_panel=DATA, help="Split of a data set on the Hub.")]
Limit = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=DATA,
        help="Use only the first rows, at most this many.",
        min=1,
    ),
]
TrainLimit = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=DATA,
        help="Use at most this many rows to train on, and at most this many to validate with.",
        min=1,
    ),
]
SkipNan = Annotated[
    bool,
    typer.Option(
        "--skip-nan",
        rich_help_panel=VECTORS,
        help="Leave out rows whose vectors hold NaN or infinity. By default, they are an error.",
    ),
]
EngineName = Enum("EngineName", {name: name for name in ENGINES}, type=str)  # type: ignore[misc]
Engine = Annotated[
    EngineName,
    typer.Option(
        rich_help_panel=GENERATION,
        help="Engine that generates the texts. " + " ".join(f"{name}: {text}" for name, text in ENGINES.items()),
    ),
]
UseCache = Annotated[
    bool,
    typer.Option(
        "--use-cache",
        rich_help_panel=HUB,
        help="Use this machine's cache of the Hub, instead of downloading as a reader does.",
    ),
]
TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code",
        rich_help_panel=HUB,
        help="Run the bundle's Python files even if they are not this package's own.",
    ),
]
