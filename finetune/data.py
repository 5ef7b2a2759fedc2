"""Check and split the rows of a data set: their columns, texts and vectors, and the rows that are held out."""

import hashlib
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset

from ..common.console import say
from ..common.errors import missing_column
from ..common.vector_file_names import is_vector_file
from ..kinds_t5fusion import DEFAULT_KIND, counted
from ..processing_t5fusion import MINILM
from .column_vectors import NameRow, NotFinite, is_list, read_vectors
from .file_names import check_vector_files
from .files import load_rows
from .row_blocks import texts_of
from .streaming import load_first

HELD_OUT_ONE_IN = 10  # One row in ten is held out.
TEXT_DTYPES = ("string", "large_string", "string_view", "null")
Widths = Mapping[str, int]  # the width of each kind of vectors, by the name of the kind


class Columns(NamedTuple):
    """The names of a data set's columns; None for a column that is not used."""

    text: str | None = None  # the input text; if None, the rows have no text, and the model reads their vectors alone
    target: str | None = None  # the text to generate
    lexical: str | None = None  # the text that the encoder makes the vector from; if None, the input text
    # The vectors themselves: a column, or a NumPy file NAME.npy with a row for each row; for several kinds, by kind.
    vector: str | Mapping[str, str] | None = None

    @property
    def texts(self) -> list[str]:
        """The columns that hold text."""
        return [name for name in (self.text, self.target, self.lexical) if name is not None]

    @property
    def by_kind(self) -> dict[str, str]:
        """The columns of vectors by the name of their kind. A single column without a name has the kind "lexical"."""
        return {DEFAULT_KIND: self.vector} if isinstance(self.vector, str) else dict(self.vector or {})

    @property
    def vector_files(self) -> list[str]:
        """The NumPy files among the columns of vectors: those whose names end in .npy."""
        return [name for name in self.by_kind.values() if is_vector_file(name)]

    def with_vector_files(self, rename: Callable[[str], str]) -> "Columns":
        """Return the columns with other names for their NumPy files."""
        if not self.vector_files:
            return self
        renamed = {kind: rename(name) if is_vector_file(name) else name for kind, name in self.by_kind.items()}
        return self._replace(vector=renamed[DEFAULT_KIND] if isinstance(self.vector, str) else renamed)

    @property
    def by_use(self) -> dict[tuple[str, str], str]:
        """All columns, each by what it is used for, and by the option of the command line that names it."""
        named = {(f"{use} column", f"--{use}-column"): name for use, name in self._asdict().items()}
        uses = {use: name for use, name in named.items() if isinstance(name, str)}
        for kind, name in {} if isinstance(self.vector, str) else self.by_kind.items():
            uses[f"column of {kind} vectors", f"--vector-column {kind}=COLUMN"] = name
        return uses

    @property
    def in_words(self) -> str:
        """All columns as a phrase, such as "text column 'name', target column 'text'"."""
        return ", ".join(f"{use} {name!r}" for (use, _), name in self.by_use.items())


def hub_data_set(data: str) -> str | None:
    """Return `data` if it is the id of a data set on the Hub; None if it is a file or folder."""
    return None if Path(data).exists() else data


def check_columns(rows: Dataset, columns: Iterable[str]) -> None:
    """Raise ValueError if a column is missing. The message lists the columns that exist, and suggests one."""
    for column in columns:
        if column not in rows.column_names:
            raise missing_column(column, rows.column_names)


def check_trained_columns(rows: Dataset, columns: Columns, trained: Columns | None) -> None:
    """Check that the rows have the columns.

    Args:
        rows: The rows.
        columns: The columns to read.
        trained: The columns that the model was trained with; None if they are not known.

    Raises:
        ValueError: A column is missing. The message lists the columns that exist. If the missing column was used in
            training, the message also says which option names a different one.
    """
    of_training = {} if trained is None else trained.by_use
    for (use, option), column in columns.by_use.items():
        if column not in rows.column_names and of_training.get((use, option)) == column:
            was_used = f", which the model was trained with as its {use}"
            raise ValueError(f"{missing_column(column, rows.column_names, was_used)} Name the right one with {option}.")
    check_columns(rows, columns.by_use.values())


def check_texts(rows: Dataset, columns: Sequence[str]) -> None:
    """Raise ValueError if one of `columns` holds anything but text, such as numbers."""
    for column in columns:
        dtype = getattr(rows.features[column], "dtype", "list")
        if dtype not in TEXT_DTYPES:
            raise ValueError(
                f"column {column!r} holds values of type {dtype}; expected text. Convert them, or name a different "
                "column."
            )


def are_usable(
    rows: Dataset, columns: Columns, numbers: Sequence[int] | None = None, widths: Widths | None = None
) -> np.ndarray:
    """Return which rows are usable: bool (rows,).

    A usable row has text in every column of texts. If neither its input nor its vector is made from a text, it must
    have a vector. White space alone does not count as text.

    Args:
        rows: The rows.
        columns: The columns to read.
        numbers: Number of each row in its file, for errors; if None, they are counted from 0.
        widths: The widths that the vectors must have; None if the first vectors decide.

    Raises:
        ValueError: A column of texts holds anything but text, or a column of vectors anything but vectors.
    """
    usable = have_text(rows, columns.texts)
    if columns.text is None and columns.lexical is None and columns.vector:
        usable &= _have_vector(rows, columns, numbered(numbers), widths)
    return usable


def numbered(numbers: Sequence[int] | None) -> NameRow:
    """Return a function that names a row by its number in its file; with None, by its index."""
    return lambda index: f"row {index if numbers is None else numbers[index]}"


def have_text(rows: Dataset, columns: Sequence[str]) -> np.ndarray:
    """Return which rows have text in each of `columns`, bool (rows,); ValueError if a column holds anything else."""
    check_texts(rows, columns)
    if not columns:
        return np.ones(len(rows), dtype=bool)
    texts_by_row = zip(*(texts_of(rows, column) for column in columns), strict=True)
    return np.fromiter((all(text and text.strip() for text in texts) for texts in texts_by_row), dtype=bool)


class Usable(NamedTuple):
    """Which rows are usable, by their indices."""

    finite: np.ndarray  # the rows that are not left out because of NaN or infinity, int64
    kept: np.ndarray  # the finite rows that `are_usable`, int64


def find_usable(
    rows: Dataset, columns: Columns, skip_nan: bool = False, first: int = 0, widths: Widths | None = None
) -> Usable:
    """Return which rows are usable.

    Args:
        rows: The rows.
        columns: The columns to read.
        skip_nan: Whether to leave out rows whose vectors hold NaN or infinity.
        first: Number of the first row in its file, for errors.
        widths: As for `are_usable`.

    Raises:
        ValueError: A column is missing, or holds anything but texts (or vectors).
    """
    check_columns(rows, columns.by_use.values())
    finite = finite_rows(rows, columns, first, widths) if skip_nan else np.arange(len(rows))
    finite_rows_only = rows.select(finite) if len(finite) < len(rows) else rows
    return Usable(finite, finite[are_usable(finite_rows_only, columns, (first + finite).tolist(), widths)])


def left_out(not_finite: int, unusable: int, columns: Columns) -> dict[str, int]:
    """Return how many rows were left out, by the words that say so; nothing for none."""
    lack = "an empty text" if columns.text is not None else "an empty text or without a vector"
    counts = {"NaN or infinity": not_finite, lack: unusable}
    return {f"{counted(count, 'row')} with {lack} left out": count for lack, count in counts.items() if count}


def usable_rows(rows: Dataset, columns: Columns, skip_nan: bool = False) -> Dataset:
    """Return the usable rows (see `are_usable`), and print how many were left out.

    Args:
        rows, columns, skip_nan: As for `find_usable`.

    Raises:
        ValueError: A column is missing, holds anything but texts (or vectors), or no row is left.
    """
    finite, kept = find_usable(rows, columns, skip_nan)
    remaining = len(rows)
    for words, count in left_out(len(rows) - len(finite), len(finite) - len(kept), columns).items():
        remaining -= count
        say(f"{words}; {remaining} remain.")
    if len(rows) == 0:
        raise ValueError("the data set has no rows.")
    if len(kept) == 0:
        texts = f"text in {' and '.join(map(repr, columns.texts))}"
        needed = texts if columns.text is not None or columns.lexical else f"{texts}, and a vector"
        raise ValueError(f"none of {counted(len(rows), 'row')} has {needed}. Check the names of the columns.")
    return rows if len(kept) == len(rows) else rows.select(kept)


def report_no_text(columns: Columns, names: Iterable[str]) -> None:
    """Print that the rows have no text, if no column of texts is named.

    Args:
        columns: The columns to read.
        names: The names of all columns that there are.
    """
    if columns.text is None:
        unread = "text" in names and "text" not in columns.by_use.values()
        hint = " (The column 'text' is not read; --text-column would name it.)" if unread else ""
        say(f"The rows have no text: the model reads their vectors alone.{hint}")


def finite_rows(rows: Dataset, columns: Columns, first: int = 0, widths: Widths | None = None) -> np.ndarray:
    """Return the indices of the rows whose vectors hold neither NaN nor infinity, int64.

    Args:
        rows, columns, first, widths: As for `find_usable`.

    Raises:
        ValueError: A column of vectors holds something else.
    """
    is_finite, name_row = np.ones(len(rows), dtype=bool), numbered(range(first, first + len(rows)))
    for kind, column in columns.by_kind.items():
        not_finite: list[int] = []
        for _ in read_vectors(rows, column, name_row, not_finite=not_finite, width=(widths or {}).get(kind)):
            pass
        is_finite[not_finite] = False
    return np.flatnonzero(is_finite)


def check_vectors(rows: Dataset, columns: Columns, numbers: Sequence[int], widths: Widths) -> None:
    """Raise ValueError if a column of vectors holds anything else, or vectors of other widths.

    Args:
        rows, columns, numbers, widths: As for `are_usable`.
    """
    for kind, column in columns.by_kind.items():
        for _ in read_vectors(rows, column, numbered(numbers), width=widths[kind]):
            pass


@contextmanager
def advising_skip_nan() -> Iterator[None]:
    """Add to an error about NaN or infinity, raised in this context, which option leaves such rows out."""
    try:
        yield
    except NotFinite as error:
        raise ValueError(f"{error} To leave out rows with NaN or infinity, pass --skip-nan.") from error


def first_rows(rows: Dataset, limit: int | None) -> Dataset:
    """Return the first `limit` rows; all of them if it is None."""
    return rows if limit is None else rows.select(range(min(limit, len(rows))))


def load_split(
    data: str,
    columns: Columns,
    validation: str | None = None,
    encoder: str | None = None,
    encoding: str | None = None,
    skip_nan: bool = False,
    streaming: bool = False,
) -> tuple[Dataset, Dataset]:
    """Return the usable rows to train on, and the usable rows to validate with (see `are_usable`).

    Args:
        data: A file, or the id of a data set on the Hub.
        validation: A file or data set to validate with; if None, `hold_out` splits `data`.
        encoder: The encoder that the user named. If there is one, columns of vectors may stay unread.
        encoding: Encoding of CSV files; None for UTF-8.
        skip_nan: Whether to leave out rows whose vectors hold NaN or infinity.
        streaming: Whether to read only the first rows of each set, `streaming.FIRST`.

    Raises:
        ValueError: The rows cannot be used or split, or they hold vectors that no option reads.
        OSError: There is neither a file nor a data set of this name.
    """
    check_vector_files(columns.vector_files, data, validation)
    load = load_first if streaming else load_rows
    rows = usable_rows(load(data, "train", encoding, columns.vector_files), columns, skip_nan)
    if not (columns.lexical or columns.vector or encoder):
        _check_no_vectors(rows, data)
    if validation is None:
        return hold_out(rows, columns)
    return rows, usable_rows(load(validation, "validation", encoding), columns, skip_nan)


def _check_no_vectors(rows: Dataset, data: str) -> None:
    """Raise ValueError if the rows have columns of vectors, because no option reads them."""
    unread = vector_columns(rows)
    if unread:
        raise ValueError(
            f"{data} holds vectors in {'column' if len(unread) == 1 else 'columns'} {', '.join(map(repr, unread))}, "
            f"which no option reads. Pass {' '.join(f'--vector-column {shlex.quote(name)}' for name in unread)}; or "
            f"--encoder {MINILM} to make the vectors from the text."
        )


def vector_columns(rows: Dataset) -> list[str]:
    """Return the columns whose type is lists of floating point numbers. Lists of integers may mean something else."""

    def is_vector(type_: pa.DataType) -> bool:
        return is_list(type_) and (pa.types.is_floating(type_.value_type) or is_vector(type_.value_type))

    return [field.name for field in rows.features.arrow_schema if is_vector(field.type)]


def hold_out(rows: Dataset, columns: Columns) -> tuple[Dataset, Dataset]:
    """Split rows: about nine tenths to train on, one tenth to validate with. Rows with the same key stay together.

    The key of a row is one of these:

    - its text. The split is then the same with and without vectors.
    - its pair of text and vector, if vectors (or the texts that they are made from) have a column of their own, and
      there are more than twice as many different pairs as texts: the texts are then prompts that many rows share. A
      message says so.
    - its vector, or the text that the vector is made from, if rows have no text.

    Raises:
        ValueError: There are too few different texts or pairs, or a vector is invalid (see `read_vectors`).
    """
    text_keys = _text_keys(rows, columns)
    keys, key_name, texts = text_keys, "text", _count_distinct(text_keys)
    # Reading all vectors takes time, and is of no use if there are too few rows for that many pairs.
    if (columns.lexical or columns.vector) and (len(rows) > 2 * texts or texts == 1):
        pair_keys = _pair_keys(rows, columns)
        # A single pair cannot be split. It becomes the key all the same, so that the error names the vector too.
        if _count_distinct(pair_keys) > 2 * texts or _count_distinct(pair_keys) == 1 or columns.text is None:
            text = ["text"] if columns.text is not None else []
            vectors = ["vectors" if len(columns.by_kind) > 1 else "vector"] if columns.vector else []
            lexical = [repr(columns.lexical)] if columns.lexical else []
            keys, key_name = pair_keys, " and ".join([*text, *vectors, *lexical])
    held_out = _held_out(keys)
    if held_out.all() or not held_out.any() or _count_distinct(keys) < min(HELD_OUT_ONE_IN, len(rows) / 2):
        raise ValueError(f"{_why_not_split(keys, key_name)}. Name a file with --validation.")
    choice = f"the rows to validate with are chosen by {key_name}."
    if columns.text is None:
        say(f"{len(rows)} rows have no text; {choice}")
    elif keys is not text_keys:
        say(f"{len(rows)} rows have {counted(texts, 'different text')}; {choice}")
    return rows.select(np.flatnonzero(~held_out)), rows.select(np.flatnonzero(held_out))


def find_held_out(rows: Dataset, held_out: Dataset, columns: Columns) -> Callable[[Dataset], np.ndarray]:
    """Return a function that marks the further rows of a set that share a key with the held-out rows.

    The key is the text, or the pair of text and vector if `hold_out` has split by pairs.

    Args:
        rows, held_out: The first rows of the set, as `hold_out` has split them.
        columns: The columns to read.

    Returns:
        A function of rows, which returns bool (rows,).
    """
    keys_of, held_keys = _text_keys, _as_set(_text_keys(held_out, columns))
    if not held_keys.isdisjoint(_as_set(_text_keys(rows, columns))):
        keys_of, held_keys = _pair_keys, _as_set(_pair_keys(held_out, columns))

    def mark_held_out(rows: Dataset) -> np.ndarray:
        keys = map(tuple, keys_of(rows, columns).tolist())
        return np.fromiter((key in held_keys for key in keys), dtype=bool, count=len(rows))

    return mark_held_out


def _as_set(keys: np.ndarray) -> set[tuple[int, int]]:
    """Return the hashes of `_hashes` as a set."""
    return set(map(tuple, keys.tolist()))


def _text_keys(rows: Dataset, columns: Columns) -> np.ndarray:
    """Return the hash of each row's text, as `_hashes` does."""
    return _hashes(_stripped(rows, columns.text))


def _pair_keys(rows: Dataset, columns: Columns) -> np.ndarray:
    """Return the hash of each row's text, its vectors and the text that a vector is made from, as `_hashes` does."""
    others = [vector_keys(rows, column) for column in columns.by_kind.values()]
    if columns.lexical:
        others.append(texts_of(rows, columns.lexical))
    return _hashes(map("\n".join, zip(_stripped(rows, columns.text), *others, strict=True)))


def _stripped(rows: Dataset, column: str | None) -> Iterator[str]:
    """Yield the texts in a column without the white space around them; empty texts without a column."""
    return (str(text).strip() for text in input_texts(rows, column))


def input_texts(rows: Dataset, column: str | None) -> Iterator[str]:
    """Yield the input text of each row; an empty one if there is no column of texts."""
    return repeat("", len(rows)) if column is None else texts_of(rows, column)


def vector_keys(rows: Dataset, column: str, name_row: NameRow = "row {}".format) -> Iterator[str]:
    """Yield a string for each row. Rows with equal vectors get equal strings."""
    for vector in read_vectors(rows, column, name_row):
        yield "" if vector is None else hashlib.md5(vector.numpy().tobytes()).hexdigest()


def _hashes(names: Iterator[str]) -> np.ndarray:
    """Return a hash of each name in lower case, as two numbers: uint64 (names, 2), high bits first.

    A large set has room for its hashes in memory, but not for its texts.
    """
    return np.frombuffer(b"".join(map(_hash, names)), dtype=">u8").astype(np.uint64).reshape(-1, 2)


def _hash(name: str) -> bytes:
    return hashlib.md5(name.lower().encode()).digest()


def _count_distinct(keys: np.ndarray) -> int:
    """Return how many different hashes there are among the hashes of `_hashes`."""
    return len(np.unique(keys.view([("high", np.uint64), ("low", np.uint64)])))


def _held_out(keys: np.ndarray) -> np.ndarray:
    """Return which names are held out, one in `HELD_OUT_ONE_IN`: bool (names,), equal to `is_held_out` of each name.

    Args:
        keys: The hashes of the names, as `_hashes` returns them.
    """
    high, low = (keys % np.uint64(HELD_OUT_ONE_IN)).T
    return (high * np.uint64(2**64 % HELD_OUT_ONE_IN) + low) % np.uint64(HELD_OUT_ONE_IN) == 0


def _why_not_split(keys: np.ndarray, key_name: str) -> str:
    """Return why no rows can be held out: there are too few rows, texts or pairs."""
    if (number := _count_distinct(keys)) == len(keys):
        return f"{number} rows are too few to hold some out for validation"
    if number == 1:
        return f"all {len(keys)} rows have the same {key_name}, so no row can be held out to validate with"
    word = f"pairs of {key_name}" if " and " in key_name else key_name + ("" if key_name == "vectors" else "s")
    return f"{len(keys)} rows have {number} different {word}, too few to hold some out for validation"


def is_held_out(name: str, one_in: int) -> bool:
    """Return whether the rows of a name are held out. This depends on the name alone, and ignores its case.

    Args:
        name: The name, or a different text that the rows share.
        one_in: 10 to hold out one name in ten.
    """
    return int(hashlib.md5(name.lower().encode()).hexdigest(), 16) % one_in == 0


def vector_widths(rows: Dataset, columns: Columns) -> dict[str, int]:
    """Return the width of each kind of vectors: the width of the first vector in its column.

    Raises:
        ValueError: A column holds no vector, or a different value before the first vector.
    """
    widths = {}
    for kind, column in columns.by_kind.items():
        vectors = read_vectors(rows, column, row_names(rows, columns))
        width = next((vector.shape[-1] for vector in vectors if vector is not None), None)
        if width is None:
            raise ValueError(f"column {column!r} holds no vector in any of {counted(len(rows), 'row')}.")
        widths[kind] = width
    return widths


def require_vectors(rows: Dataset, columns: Columns) -> np.ndarray:
    """Require that a row has a vector of any kind, and return which rows have one, bool (rows,).

    Raises:
        ValueError: No row has a vector, or a column holds a value that is not a vector.
    """
    with_vector = _have_vector(rows, columns, row_names(rows, columns))
    if not with_vector.any():
        raise ValueError(f"{no_vector_in(columns)} in any of {counted(len(rows), 'row')}.")
    return with_vector


def _have_vector(rows: Dataset, columns: Columns, name_row: NameRow, widths: Widths | None = None) -> np.ndarray:
    """Return which rows have a vector of any kind, bool (rows,); ValueError if a column holds any other value."""
    with_vector = np.zeros(len(rows), dtype=bool)
    for kind, column in columns.by_kind.items():
        vectors = read_vectors(rows, column, name_row, width=(widths or {}).get(kind))
        with_vector |= np.fromiter((vector is not None for vector in vectors), dtype=bool, count=len(rows))
    return with_vector


def no_vector_in(columns: Columns) -> str:
    """Return the beginning of a sentence: that the columns of vectors hold no vector."""
    names = [repr(column) for column in columns.by_kind.values()]
    return (
        f"{'columns' if len(names) > 1 else 'column'} {', '.join(names)} hold{'' if len(names) > 1 else 's'} no vector"
    )


def row_names(rows: Dataset, columns: Columns) -> NameRow:
    """Return a function that names a row for errors: by its first text, or else by its index."""
    column = next(iter(columns.texts), None)
    return lambda index: f"row {index}" if column is None else f"the row of {rows[index][column]!r}"
