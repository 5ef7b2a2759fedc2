"""Columns of vectors, as files have them: lists, lists of lists, single numbers, and these as JSON in a text."""

import json
import math
import tracemalloc
from datetime import datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Array2D, Dataset, Features

from t5fusion.finetune import column_vectors
from t5fusion.finetune.column_vectors import read_vectors
from t5fusion.finetune.data import Columns, hold_out, require_vectors, vector_widths


def given_vectors(*arguments, **options):
    """What `read_vectors` yields, as a list."""
    return list(read_vectors(*arguments, **options))


def lists_of(vectors):
    """Vectors as lists, which tests compare."""
    return [None if of_row is None else of_row.tolist() for of_row in vectors]


def rows_of(values, kind=None):
    return Dataset(pa.table({"v": pa.array(values, kind)}))


def test_given_vectors():
    vectors = given_vectors(Dataset.from_dict({"v": [[1.0, 2.0], [3.0, 4.5]]}), "v")
    assert lists_of(vectors) == [[1.0, 2.0], [3.0, 4.5]]
    assert all(vector.dtype == torch.float32 for vector in vectors)


@pytest.mark.parametrize("values", [[[1, 2], [3, 40_000]], [[True, False], [False, True]]])
def test_vectors_of_integers_and_booleans_are_accepted(values):
    vectors = given_vectors(Dataset.from_dict({"v": values}), "v")
    assert lists_of(vectors) == [[float(x) for x in row] for row in values]
    assert all(vector.dtype == torch.float32 for vector in vectors)


def test_a_row_without_a_vector_has_none():
    rows = Dataset.from_dict({"v": [None, [], [1.0, 2.0], None, [3.0, 4.5]]})
    assert lists_of(given_vectors(rows, "v")) == [None, None, [1.0, 2.0], None, [3.0, 4.5]]
    assert given_vectors(Dataset.from_dict({"v": [None, None]}), "v") == [None, None]


SEVERAL = [[[1, 2], [3, 4]], None, [], [[5, 6]], [[7, 8], [9, 1], [2, 3]]]
READ = [[[1.0, 2.0], [3.0, 4.0]], None, None, [5.0, 6.0], [[7.0, 8.0], [9.0, 1.0], [2.0, 3.0]]]


@pytest.mark.parametrize("number", [pa.float16(), pa.float32(), pa.float64(), pa.int64()])
def test_a_row_may_have_several_vectors(number, monkeypatch):
    values = SEVERAL
    if number == pa.float16():
        values = [of_row and [np.array(vector, np.float16) for vector in of_row] for of_row in SEVERAL]
    assert lists_of(given_vectors(rows_of(values, pa.list_(pa.list_(number))), "v")) == READ
    assert lists_of(given_vectors(rows_of(values, pa.large_list(pa.list_(number, 2))), "v")) == READ
    monkeypatch.setattr(column_vectors, "_vectors_of_block", lambda *arguments: None)
    assert lists_of(given_vectors(rows_of(values, pa.list_(pa.list_(number))), "v")) == READ


@pytest.mark.parametrize(
    "kind", [pa.float16(), pa.float32(), pa.float64(), pa.int32(), pa.uint8(), pa.decimal128(5, 2)]
)
def test_a_single_number_is_a_vector_of_one(kind):
    values = [Decimal(2), None, Decimal(0)] if pa.types.is_decimal(kind) else [2, None, 0]
    values = [value if value is None else np.float16(value) for value in values] if kind == pa.float16() else values
    assert lists_of(given_vectors(rows_of(values, kind), "v")) == [[2.0], None, [0.0]]


def test_a_text_holds_vectors_as_json():
    texts = ["[1, 2.5]", " [3,4]", "", None, "null", "[]", "[[1, 2], [3, 4]]", "[[5, 6]]"]
    expected = [[1.0, 2.5], [3.0, 4.0], None, None, None, None, [[1.0, 2.0], [3.0, 4.0]], [5.0, 6.0]]
    assert lists_of(given_vectors(rows_of(texts), "v")) == expected
    assert lists_of(given_vectors(rows_of(["3", " .5 ", "-1e3", ""]), "v")) == [[3.0], [0.5], [-1000.0], None]


def test_the_array_types_of_datasets_are_read():
    values = np.arange(12.0, dtype="float32").reshape(2, 3, 2)
    rows = Dataset.from_dict({"v": values}, features=Features({"v": Array2D((3, 2), "float32")}))
    assert lists_of(given_vectors(rows, "v")) == values.tolist()


@pytest.mark.parametrize(
    ("values", "row", "found"),
    [
        ([[1.0, 2.0], [3.0]], 1, "1 number; expected one vector of 2 finite numbers, as in the first row that has a"),
        ([[1.0, 2.0], [3.0, None]], 1, "null at index 1; expected one vector of 2 finite numbers"),
        ([[1.0, 2.0], [math.inf, 3.0]], 1, "inf at index 0; expected"),
        ([[1.0, 2.0], None, [1.0]], 2, "1 number; expected one vector of 2 finite numbers, as in the first row that"),
        ([[1.0, 2.0], [3.0, 1e39]], 1, r"1e\+39, too large for float32, at index 1; expected"),
        ([b"ab", b"cd"], 0, "binary data; expected one vector"),
        ([datetime(2026, 1, 1)] * 2, 0, "a datetime; expected one vector"),
        ([True, False], 0, "a single truth value; expected one vector"),
        ([1.0, math.nan], 1, "nan at index 0; expected one vector of 1 finite"),
        ([["a", "b"], ["c", "d"]], 0, '"a" at index 0; expected'),
        ([["a" * 100]], 0, f'"{"a" * 39}... at index 0; expected'),
        ([[[1.0, 2.0]], [[3.0, 4.0], [1.0]]], 1, "2 vectors of unequal width; expected one vector of 2 finite numbers"),
        ([[[1.0, 2.0]], [[3.0], [4.0]]], 1, "2 vectors of 1 number; expected one vector of 2 finite numbers"),
        (
            [[[1.0, 2.0]], [[3.0, 4.0], None]],
            1,
            "null at index 1, between vectors; expected .*a list of such vectors.",
        ),
        (
            [[[1.0, 2.0]], [[3.0, 4.0], [1.0, 1e39]]],
            1,
            r"1e\+39, too large for float32, at index 1 of vector 1; expected",
        ),
        (
            ["ab", "cd"],
            0,
            "a text that is not a list of numbers, 'ab'; expected .* In a text, write them as JSON, such as",
        ),
        (["[0.1 0.2]"], 0, r"NumPy's text of an array, '\[0.1 0.2\]', which may lack numbers: before `to_csv`, rep"),
        ([str(np.arange(2000.0) / -7e5)], 0, r"NumPy's text of an array, .* or use `to_parquet`; expected one vector"),
        (["[one two]"], 0, r"a text that is not a list of numbers, '\[one two\]'"),
        (["[1, 2]", "[1"], 1, r"a text that is not a list of numbers, '\[1'; expected one vector of 2 finite numbers"),
        (["[1, NaN]"], 0, "nan at index 1; expected"),
        ([f"[0, 1{'0' * 400}]"], 0, "inf at index 1; expected"),
        ([f"[[0], [1{'0' * 400}]]"], 0, "inf at index 0 of vector 1; expected"),
        (['{"a": 1}'], 0, "a text that is not a list of numbers"),
        (["true"], 0, "a single truth value"),
        (["[" * 100_000], 0, r"a text that is not a list of numbers, '\[{40}\.\.\.'"),
        ([f"[{', '.join(['1'] * 3)}, null]"], 0, "null at index 3; expected"),
        (["1", "[1, 2]"], 1, "2 numbers; expected one vector of 1 finite number"),
    ],
)
def test_the_error_about_a_bad_vector_names_its_row(values, row, found):
    with pytest.raises(ValueError, match=f"^row {row}, column 'v': {found}"):
        given_vectors(Dataset.from_dict({"v": values}), "v")


@pytest.mark.parametrize(
    ("values", "row", "found"),
    [
        ([[1.0, 2.0], [0.0, 0.0], [3e30, 4e30]], 2, r"2 numbers of Euclidean norm 5e\+30, outside 1e-06 to 1e\+18;"),
        ([[1.0, 2.0], [3e-20, 4e-20]], 1, r"2 numbers of Euclidean norm 5e-20, outside 1e-06 to 1e\+18; expected one"),
        (
            [[[1.0, 2.0], [3e-20, 4e-20]]],
            0,
            r"2 numbers of Euclidean norm 5e-20, outside 1e-06 to 1e\+18; expected one",
        ),
    ],
)
def test_only_a_kind_without_a_scale_needs_a_readable_norm(values, row, found):
    rows = Dataset.from_dict({"v": values})
    assert len(given_vectors(rows, "v")) == len(values)
    with pytest.raises(ValueError, match=f"row {row}, column 'v': {found}"):
        given_vectors(rows, "v", is_scaled=False)


def test_plain_columns_are_read_in_blocks(monkeypatch):
    """Not value by value, which is slow."""
    monkeypatch.setattr(column_vectors, "_read_each", None)
    for values in ([[1.0, 2.0], None], [[[1.0, 2.0]], [[1.0, 2.0]] * 3], [1, None, 2], [0.5]):
        assert len(given_vectors(rows_of(values), "v")) == len(values)


def test_memory_does_not_grow_with_the_rows(tmp_path):
    """Also for rows with several vectors and for JSON in texts."""
    peaks = {}
    for name, value in {"lists": [[0.5] * 64] * 4, "texts": json.dumps([0.5] * 256)}.items():
        for count in (2_000, 8_000):
            Dataset.from_dict({"v": [value] * count}).to_parquet(tmp_path / f"{name}{count}.parquet")
            rows = Dataset.from_parquet(str(tmp_path / f"{name}{count}.parquet"), cache_dir=str(tmp_path / "cache"))
            tracemalloc.start()
            assert sum(1 for _ in read_vectors(rows, "v")) == count
            peaks[name, count] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peaks[name, 8_000] < 1.5 * peaks[name, 2_000]


KINDS = Columns("name", vector={"image": "img", "price": "price"})


def test_widths_and_presence_of_several_kinds():
    rows = Dataset.from_dict(
        {"name": ["a", "b", "c"], "img": [None, [[1.0, 2.0], [3.0, 4.0]], None], "price": [3, None, None]}
    )
    assert vector_widths(rows, KINDS) == {"image": 2, "price": 1}
    assert require_vectors(rows, KINDS).tolist() == [True, True, False]
    empty = Dataset.from_dict({"name": ["a", "b"], "img": [None, []], "price": [3, None]})
    with pytest.raises(ValueError, match="column 'img' holds no vector in any of 2 rows"):
        vector_widths(empty, KINDS)
    assert require_vectors(empty, KINDS).tolist() == [True, False]
    with pytest.raises(ValueError, match="columns 'img', 'price' hold no vector in any of 2 rows"):
        require_vectors(Dataset.from_dict({"name": ["a", "b"], "img": [None, []], "price": [None, None]}), KINDS)


def test_rows_with_the_same_prompt_are_distinguished_by_all_their_vectors(capsys):
    images = [[float(row % 5), 1.0] for row in range(200)]
    rows = Dataset.from_dict({"name": ["describe it"] * 200, "img": images, "price": [row // 5 for row in range(200)]})
    training, held_out = hold_out(rows, KINDS)
    assert 5 <= len(held_out) <= 50 and len(training) + len(held_out) == 200
    assert "are chosen by text and vectors." in capsys.readouterr().err
    with pytest.raises(ValueError, match="200 rows have 5 different pairs of text and vector, too few"):
        hold_out(rows, Columns("name", vector={"image": "img"}))
