"""What the name of a file says: which kind of file it is. This module imports nothing that is slow."""

from collections.abc import Iterable
from pathlib import Path

FILE_KINDS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
STREAMED_KINDS = (*FILE_KINDS, ".txt")  # what `generate` reads
TEXT_KINDS = (".txt", ".csv")  # may have any encoding; JSON is always UTF-8
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
        encoding: The encoding that was asked for, if any.
        kinds: The suffixes of the file types that can be read.

    Raises:
        ValueError: The file has another type, is empty, or has no encoding to choose.
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
    kind = kind_of(str(path))
    if f"{kind}.gz" not in OUTPUT_ENDINGS if is_zipped(str(path)) else kind not in OUTPUT_ENDINGS:
        ending = "".join(path.suffixes[-2:] if is_zipped(str(path)) else path.suffixes[-1:])
        raise ValueError(
            f"{path} {f'ends in {ending}' if ending else 'has no ending'}; expected one of {', '.join(OUTPUT_ENDINGS)}."
        )
