"""The rows that `harvest` reads from source files."""

import ast
import hashlib
import itertools

import pytest

from t5fusion.demo.harvest import first_sentence, harvest, standard_library
from t5fusion.finetune.data import is_held_out

MODULE = '''
"""Reads and writes settings. The second sentence is left out."""

import not_installed_anywhere

raise SystemExit("a harvest must never run the file")


class Settings:
    """Holds the settings of one application."""

    def load(self, path):
        """Load the settings from a file.

        Args:
            path: of the file.
        """

        def inner(line):
            """Split one line of the file."""
            return line.split("=")

        return [inner(line) for line in open(path)]


async def fetch(url, *, retries=3):
    "Fetch one page over the network"
    return await get(url, retries)


def short():
    """Too short."""


def undocumented():
    return 1


def only_a_docstring():
    """Does nothing at all here."""
'''


@pytest.fixture
def source(tmp_path):
    files = {
        "shop/__init__.py": '"""A shop with many things."""\nfrom .stock import *\n',
        "shop/stock.py": MODULE,
        "shop/broken.py": 'def f(:\n    """This one is not valid Python."""\n',
        "shop/old.py": 'print "of another version"\n',
        "shop/tests/test_stock.py": '"""A test that is passed over."""\n',
        "tests/other.py": '"""Another test that is passed over."""\n',
        "notes.txt": '"""No source file at all."""\n',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "shop" / "latin.py").write_bytes(b'"""Not in the UTF-8 encoding: \xff\xfe."""\n')
    return tmp_path


def test_names_kinds_and_descriptions_in_order(source):
    assert [(row.name, row.defined_as, row.description) for row in harvest(source)] == [
        ("shop", "module", "A shop with many things."),
        ("shop.stock", "module", "Reads and writes settings."),
        ("Settings", "class", "Holds the settings of one application."),
        ("fetch", "function", "Fetch one page over the network"),
        ("only_a_docstring", "function", "Does nothing at all here."),
        ("load", "function", "Load the settings from a file."),
        ("inner", "function", "Split one line of the file."),
    ]


def test_bodies_hold_no_docstrings_of_their_own_or_of_inner_definitions(source):
    rows = {row.name: row for row in harvest(source, max_body=10_000)}
    descriptions = [row.description.rstrip(".") for row in rows.values()]
    for row in rows.values():
        assert not [text for text in descriptions if text in row.body], row.name
    assert "class Settings" in rows["shop.stock"].body and "def inner" in rows["shop.stock"].body
    assert "inner(line) for line in open(path)" in rows["load"].body
    assert rows["load"].body.startswith("self, path")
    assert rows["fetch"].body == "url, *, retries=3\nreturn await get(url, retries)"
    assert rows["load"].docstring == "Load the settings from a file.\n\nArgs:\n    path: of the file."


def test_a_body_is_cut(source):
    rows = list(harvest(source, max_body=20))
    assert max(len(row.body) for row in rows) == 20
    whole = {row.name: row.body for row in harvest(source, max_body=10_000)}
    assert all(row.body == whole[row.name][:20] for row in rows)


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return it. Then more.", "Return it."),
        ("Return\n    the\n  value.\n\nMore.", "Return the value."),
        ("Return x, e.g. the value of it.", "Return x, e.g. the value of it."),
        ("Return version 1.5 of it", "Return version 1.5 of it"),
        ("Is it ready? Nobody knows.", "Is it ready?"),
        ("\n  Return it.\n  (More.)", "Return it."),
    ],
)
def test_first_sentence(docstring, sentence):
    assert first_sentence(docstring) == sentence


def test_held_out_is_a_function_of_the_name_alone():
    names = ["".join(letters) for letters in itertools.product("abcdefghijklm", repeat=3)]
    held_out = [name for name in names if is_held_out(name, 10)]
    assert 0.07 < len(held_out) / len(names) < 0.13
    assert held_out == [name for name in names if is_held_out(name.upper(), 10)]
    assert held_out == [n for n in names if int(hashlib.md5(n.encode()).hexdigest(), 16) % 10 == 0]


def test_the_standard_library_has_many_of_each_kind():
    folder = standard_library()
    assert (folder / "json" / "decoder.py").exists()
    rows = list(harvest(folder / "json")) + list(harvest(folder / "email"))
    assert {"module", "class", "function"} == {row.defined_as for row in rows} and len(rows) > 100
    for row in rows:
        assert 3 <= len(row.description.split()) <= 40 and len(row.body) <= 600
        if row.defined_as == "module" and len(row.body) < 600:
            tree = ast.parse(row.body)
            assert not [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and ast.get_docstring(n)], row.name
