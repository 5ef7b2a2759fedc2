"""The formats of a file of generated texts: JSON lines, CSV and Parquet. A file is written whole or not at all."""

import base64
import datetime
import gzip
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from .file_names import is_zipped, suffix_of

GROUP_ROWS, GROUP_BYTES = 8192, 2**25  # limits of a row group in a Parquet file, which must fit into memory
UNFINISHED = "~"  # ends the name of a file until it is whole


def can_hold_vectors(path: Path) -> bool:
    """Return whether a file of this name keeps columns of vectors. CSV does not: they would be long texts."""
    return suffix_of(str(path)) != ".csv"


def write_whole(path: Path, schemas: Sequence[pa.Schema], tables: Iterable[pa.Table]) -> None:
    """Write tables to a file. Its ending chooses the format. Until the file is whole, its name ends in "~".

    Args:
        path: The file.
        schemas: The schemas of the tables. A table may lack columns that others have; its rows get nulls there.
        tables: The rows.

    Raises:
        ValueError: Columns of one name have types that no single column of a Parquet file can hold.
        OSError: The file cannot be written. The unfinished file is removed.
    """
    unfinished = path.with_name(path.name + UNFINISHED)
    write = {".jsonl": _write_json_lines, ".csv": _write_csv, ".parquet": _write_parquet}[suffix_of(str(path))]
    try:
        with unfinished.open("wb") as file:
            # The compressed file holds no name and no time, so that the same rows give the same bytes.
            compressed = gzip.GzipFile("", "wb", fileobj=file, mtime=0) if is_zipped(str(path)) else nullcontext(file)
            with compressed as opened:
                write(opened, schemas, tables)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _column_names(schemas: Sequence[pa.Schema]) -> list[str]:
    """Return the names of all columns, each once."""
    return list(dict.fromkeys(name for schema in schemas for name in schema.names))


def json_line(row: dict[str, Any]) -> bytes:
    """Return a row as a line of JSON: times by ISO 8601, binary data in base64, null for numbers that JSON lacks."""
    try:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False, default=_json_value)
    except ValueError:
        line = json.dumps(_finite(row), ensure_ascii=False, default=_json_value)
    return (line + "\n").encode()


def _json_value(value: Any) -> Any:
    """Return a value that JSON lacks as text: binary data in base64, times by ISO 8601."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.isoformat() if isinstance(value, (datetime.date, datetime.time)) else str(value)


def _finite(value: Any) -> Any:
    """Return a value with None for each number in it that is not finite."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_json_lines(file: BinaryIO, schemas: Sequence[pa.Schema], tables: Iterable[pa.Table]) -> None:
    names = _column_names(schemas)
    for table in tables:
        for row in table.to_pylist():
            file.write(json_line({name: row.get(name) for name in names}))


def _write_csv(file: BinaryIO, schemas: Sequence[pa.Schema], tables: Iterable[pa.Table]) -> None:
    names = _column_names(schemas)
    file.write(_csv_line(names))
    for table in tables:
        for row in table.to_pylist():
            file.write(_csv_line([row.get(name) for name in names]))


def _csv_line(values: Sequence[Any]) -> bytes:
    # Python's csv.writer is not used, because it does not put quotes around a carriage return.
    return (",".join(map(_csv_field, values)) + "\n").encode()


def _csv_field(value: Any) -> str:
    """Return a text unchanged, an empty text for None, and any other value as JSON; in quotes where CSV needs them."""
    if not isinstance(value, str):
        # A time becomes a text, and a number that is not finite becomes None.
        value = json.loads(json_line({"": value}))[""]
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\r\n') else text


def _write_parquet(file: BinaryIO, schemas: Sequence[pa.Schema], tables: Iterable[pa.Table]) -> None:
    try:
        schema = pa.unify_schemas(list(schemas), promote_options="permissive")
    except pa.ArrowTypeError as error:
        raise ValueError(f"the rows do not fit into one Parquet file ({error}). Name an --output .jsonl.") from error
    with pq.ParquetWriter(file, schema) as writer:
        for group in _groups(_with_schema(table, schema) for table in tables):
            writer.write_table(group)


def _with_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table with the columns and types of a schema. Columns that it lacks are null."""
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Join tables to row groups, because a file of many small groups is slow to read."""
    group: list[pa.Table] = []
    for table in tables:
        group.append(table)
        if sum(map(len, group)) >= GROUP_ROWS or sum(each.nbytes for each in group) >= GROUP_BYTES:
            yield pa.concat_tables(group)
            group = []
    if group:
        yield pa.concat_tables(group)
