"""Tell the kind of a file by its name. This module imports nothing slow, because the command line uses it."""

from collections.abc import Iterable
from pathlib import Path

FILE_KINDS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
STREAMED_KINDS = (*FILE_KINDS, ".txt")  # kinds that `generate` reads
TEXT_KINDS = (".txt", ".csv")  # kinds that may have any encoding; JSON is always UTF-8
OUTPUT_ENDINGS = (".jsonl", ".csv", ".parquet", ".jsonl.gz", ".csv.gz")


def kind_of(data: str) -> str:
    """Return the suffix that decides how a file is read, in lower case and without .gz: "rows.CSV.gz" gives ".csv"."""
    path = Path(data)
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix == ".gz" else suffix


def is_zipped(data: str) -> bool:
    """Return whether a file's name ends in .gz."""
    return Path(data).suffix.lower() == ".gz"


def check_readable(data: str, encoding: str | None = None, kinds: Iterable[str] = FILE_KINDS) -> None:
    """Check that `data` is a file of a known kind, or may be the id of a data set. Nothing is read.

    Args:
        data: The name of a file, or the id of a data set on the Hub.
        encoding: The encoding that the user named; None for none.
        kinds: The suffixes of the kinds of files that can be read.

    Raises:
        ValueError: The file is of another kind, is empty, or has no encoding to choose.
        OSError: There is no such file.
    """
    path, kind = Path(data), kind_of(data)
    is_file = path.is_file()
    if is_file and (kind not in kinds or (kind == ".parquet" and is_zipped(data))):
        raise ValueError(f"{data} is a {path.suffix or 'nameless'} file; expected one of {', '.join(kinds)}.")
    if not is_file and kind in kinds:
        raise OSError(f"there is no file {data}.")
    if is_file and path.stat().st_size == 0:
        raise ValueError(f"{data} is empty; expected rows.")
    if encoding and kind not in TEXT_KINDS:
        raise ValueError(f"an encoding was given for {data}; only {' and '.join(TEXT_KINDS)} files have one to choose.")


def check_ending(path: Path) -> None:
    """Raise ValueError unless a file's name ends in one of `OUTPUT_ENDINGS`."""
    ending = kind_of(str(path)) + (".gz" if is_zipped(str(path)) else "")
    if ending not in OUTPUT_ENDINGS:
        problem = f"ends in {ending}" if ending else "has no ending"
        raise ValueError(f"{path} {problem}; expected one of {', '.join(OUTPUT_ENDINGS)}.")
