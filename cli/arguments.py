"""Arguments and options that several commands take."""

from typing import Annotated

import typer

TextColumn = Annotated[str, typer.Option(help="Column with the input text.")]
TargetColumn = Annotated[str, typer.Option(help="Column with the text to write.")]
LexicalColumn = Annotated[
    str | None, typer.Option(help="Column with the text that the vector is made of. Default: the input text.")
]
VectorColumn = Annotated[str | None, typer.Option(help="Column that holds the vectors themselves, one in each row.")]
Encoding = Annotated[
    str | None, typer.Option(help="Of a CSV or .txt file or standard input, such as latin-1. Default: UTF-8.")
]
Trained = Annotated[
    str, typer.Argument(metavar="FOLDER", help="What `t5fusion train` saved, or a bundle, or a repository's id.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit, where FOLDER is the id of a repository.")]
Limit = Annotated[int | None, typer.Option(help="Use only the first rows.", min=1)]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what is in the output folder, once there is a checkpoint.")
]
UseCache = Annotated[
    bool, typer.Option("--use-cache", help="Use this machine's cache of the Hub; else all is fetched, as by a reader.")
]
TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="Run its Python files even where they are not this package's own.")
]
