"""Harvest rows for describing code: the name of a module, class or function, and the first sentence of its docstring.

The source files are parsed with `ast` and never imported or run. The standard library of the running interpreter gives
about 8,000 rows, on every machine and without a download.
"""

import ast
import gc
import re
import sysconfig
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "node_modules"}
FEWEST_WORDS, MOST_WORDS = 3, 40  # Definitions with a shorter or longer description are left out.
HOLDS_STATEMENTS = (ast.stmt, ast.ExceptHandler, ast.match_case)
Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class DocumentedName(NamedTuple):
    """A documented definition in a source file."""

    name: str  # "json.decoder" for a module, the bare name for a class or function
    defined_as: str  # "module", "class" or "function"
    body: str  # the source without its docstrings, cut to `max_body` characters
    description: str  # first sentence of the docstring
    docstring: str  # the whole docstring, dedented


def standard_library() -> Path:
    """Return the folder of the running interpreter's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def harvest(root: Path, max_body: int = 600) -> Iterator[DocumentedName]:
    """Yield every documented name below `root`, in the order of the sorted paths.

    Files that are not valid Python (templates, other versions) are skipped, and so are folders of tests.

    Args:
        root: Folder with Python files.
        max_body: Largest number of characters of a body; longer ones are cut.
    """
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_FOLDERS.isdisjoint(relative.parts):
            module = ".".join(part for part in relative.with_suffix("").parts if part != "__init__")
            with _collector_paused():
                rows = _documented(path.read_bytes(), module or root.name, max_body)
            yield from rows


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause the garbage collector. It would take half of the time, checking a growing syntax tree again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _documented(source: bytes, module: str, max_body: int) -> list[DocumentedName]:
    """Return the documented names in a file, in the order of `ast.walk`; none if it is not valid Python."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return []
    rows = []
    # Inner definitions come first, so that the bodies of outer ones hold no docstrings.
    for node in reversed(list(_statements(tree))):
        if isinstance(node, Definition) and (docstring := ast.get_docstring(node)):
            node.body = node.body[1:] or [ast.Pass()]
            description = first_sentence(docstring)
            if FEWEST_WORDS <= len(description.split()) <= MOST_WORDS:
                name, defined_as = _name_and_definition(node, module)
                rows.append(DocumentedName(name, defined_as, _body(node, max_body), description, docstring))
    return rows[::-1]


def _name_and_definition(node: Definition, module: str) -> tuple[str, str]:
    """Return the fields `name` and `defined_as` of a `DocumentedName`."""
    if isinstance(node, ast.Module):
        return module, "module"
    return node.name, "class" if isinstance(node, ast.ClassDef) else "function"


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the statements in the order of `ast.walk`. Expressions are left out, because they hold no definitions."""
    pending = deque[ast.AST]([tree])
    while pending:
        node = pending.popleft()
        pending.extend(child for child in ast.iter_child_nodes(node) if isinstance(child, HOLDS_STATEMENTS))
        yield node


def first_sentence(docstring: str) -> str:
    """Return the first sentence of the first paragraph, on one line.

    A sentence ends with ".", "!" or "?", before a capital letter, a quotation mark, a backtick or a parenthesis.
    """
    paragraph = " ".join(docstring.strip().split("\n\n", 1)[0].split())
    return re.split(r"(?<=[.!?])\s+(?=[A-Z`\"'(])", paragraph, maxsplit=1)[0]


def _body(node: Definition, max_body: int) -> str:
    """Return the code inside `node` as text, cut to `max_body` characters. What is cut off is not unparsed."""
    lines = [ast.unparse(node.args)] if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) else []
    for statement in node.body:
        if sum(map(len, lines)) >= max_body:
            break
        lines.append(ast.unparse(statement))
    return "\n".join(lines)[:max_body]
