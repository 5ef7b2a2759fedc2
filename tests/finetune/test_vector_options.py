"""The values of --vector-column: read, written, and refused."""

import re

import pytest

from t5fusion.finetune.vector_options import parse_vector_columns, vector_column_values

READ = {  # the values, what they are read into, and the values that are written for that, if they are others
    (): (None, None),
    ("vector",): ("vector", None),
    ("price:log",): ("price", {"lexical": {"scale": "log"}}),
    ("user=user_vec",): ({"user": "user_vec"}, None),
    ("user=user_vec", "image=img:8:mlp"): (
        {"user": "user_vec", "image": "img"},
        {"image": {"tokens": 8, "projector": "mlp"}},
    ),
    ("image=img:8:mlp:unscaled", "price=price:standard:linear"): (
        {"image": "img", "price": "price"},
        {
            "image": {"tokens": 8, "projector": "mlp", "scale": None},
            "price": {"projector": "linear", "scale": "standard"},
        },
    ),
    ("user", "price:log"): ({"user": "user", "price": "price"}, {"price": {"scale": "log"}}),
    (r"a\:b\=c",): ("a:b=c", None),
    (r"kind=a=b\:8:8",): ({"kind": "a=b:8"}, {"kind": {"tokens": 8}}),
    ("a column",): ("a column", None),
    ("data/my users.npy:mlp",): ("data/my users.npy", {"lexical": {"projector": "mlp"}}),
    ("user=data/user.npy:8", "/price.NPY:log"): (
        {"user": "data/user.npy", "price": "/price.NPY"},
        {"user": {"tokens": 8}, "price": {"scale": "log"}},
    ),
    (r"user=C:\data\user.npy:8",): ({"user": r"C:\data\user.npy"}, {"user": {"tokens": 8}}),
    ("C:/data/user.npy",): ("C:/data/user.npy", None),
}


@pytest.mark.parametrize("values", READ)
def test_values_are_read_and_written(values):
    columns, options = READ[values]
    assert parse_vector_columns(values) == (columns, options)
    written = vector_column_values(columns, options)
    again = [] if written is None else [written] if isinstance(written, str) else written
    assert parse_vector_columns(again) == (columns, options)
    # Kinds keep their order, in which they stand before the text.
    assert isinstance(columns, str) or list(parse_vector_columns(again)[0] or {}) == list(columns or {})


def test_what_is_written_is_plain():
    assert vector_column_values("vector", None) == "vector"
    assert vector_column_values({"user": "u"}, {"user": {"scale": None}}) == "user=u:unscaled"
    assert vector_column_values({"a": "b", "c": "d:e"}, {"c": {"tokens": 2}}) == ["a=b", r"c=d\:e:2"]


def test_beside_an_encoder_a_column_has_a_kind_of_its_own():
    assert parse_vector_columns(["price:log"], has_encoder=True) == ({"price": "price"}, {"price": {"scale": "log"}})


REFUSED = {
    ("user=",): "--vector-column 'user=' names no column; expected [KIND=]COLUMN[:OPTION]..., such as image=img:8:mlp.",
    ("",): "--vector-column '' names no column",
    (":8",): "--vector-column ':8' names no column",
    ("img:8:mpl",): "has the option 'mpl'; expected a number of tokens from 1, or one of linear, mlp, standard, log, "
    "unscaled; did you mean `mlp`?",
    ("img:0",): "has the option '0'; expected a number of tokens from 1",
    ("img:-1",): "has the option '-1'; expected a number of tokens from 1",
    ("img:",): "has the option ''; expected a number of tokens from 1",
    ("a:zzz",): r"a colon in the name of a column is written \:.",
    ("img:8:9",): "--vector-column 'img:8:9' sets the tokens twice. Set it once.",
    ("img:log:unscaled",): "sets the scale twice.",
    ("1st=img",): "--vector-column '1st=img': a kind cannot be called '1st'; expected a letter or `_`, then letters",
    ("user vec", "img"): "--vector-column 'user vec': no kind of vectors can have this name. Name the kind, as in "
    "--vector-column 'KIND=user vec'.",
    ("user=a", "user=b"): "--vector-column names the columns 'a' and 'b' for the kind 'user'. Name one column for each",
    ("a", "user=a"): "--vector-column names the column 'a' twice. Name one kind for each column.",
}


@pytest.mark.parametrize("values", REFUSED)
def test_values_are_refused_in_one_sentence(values):
    with pytest.raises(ValueError, match=re.escape(REFUSED[values])) as refusal:
        parse_vector_columns(values)
    assert "\n" not in str(refusal.value)


def test_generate_takes_no_options_and_an_encoder_has_its_kind():
    assert parse_vector_columns(["user=a"], takes_options=False) == ({"user": "a"}, None)
    with pytest.raises(ValueError, match="gives options for column 'a', but the training has fixed them"):
        parse_vector_columns(["user=a:8"], takes_options=False)
    with pytest.raises(ValueError, match="but the encoder makes the vectors of that kind. Name a different kind."):
        parse_vector_columns(["lexical=a"], has_encoder=True)
