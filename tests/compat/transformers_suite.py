"""transformers' common tests of models, from its source distribution, and from a clone if that lacks some."""

import os
import re
import shutil
from collections import Counter
from pathlib import Path

from .table import Outcome, Table
from .upstream import BUILD, TESTS, run_tests, source_of

CHECKOUT = os.environ.get("TRANSFORMERS_CHECKOUT")  # folder of a clone of transformers
# The common tests import these, but the distribution lacks them.
LEFT_OUT = {"exporters/test_export.py": "ExportTesterMixin", "generation/test_utils.py": "GenerationTesterMixin"}
NO_GENERATION = "not generation_tester_mixin_inheritance"
CLASSES = {
    "TestT5": "T5",
    "TestWithVectors": "with vectors",
    "TestWithKinds": "with two kinds",
    "TestWithoutVectors": "without vectors",
}


def make() -> Table:
    # One tests the tests' class and not the model. It would always pass.
    results = run("-n", "2", *([] if left_out("generation/test_utils.py") else ["-k", NO_GENERATION]))
    cells: dict[str, dict[str, dict[str, Outcome]]] = {}
    for (kind, test), outcome in sorted(results.items(), key=lambda result: result[0]):  # The order does not matter.
        if kind == "TestT5":
            continue
        cells.setdefault(f"`{test}`", {})[CLASSES[kind]] = {"T5": results["TestT5", test], "T5WithFusion": outcome}
    counts = Counter((kind, outcome.status) for (kind, _), outcome in results.items())
    passed = ", ".join(f"{name} {counts[kind, 'works']}" for kind, name in CLASSES.items())
    return Table(
        "transformers' common tests",
        f"These are the tests of `ModelTesterMixin` of the installed transformers{whose_left_out()}. *Refused* "
        "tests skip themselves, or do not apply to this model. With two kinds, the vectors are a dict; 26 tests expect "
        f"every input to be a tensor, so they are refused. Number of tests that passed: {passed}.",
        ["with vectors", "with two kinds", "without vectors"],
        cells=cells,
    )


def left_out(file: str) -> Path | None:
    """Return the path of a file of tests in the clone that `TRANSFORMERS_CHECKOUT` names."""
    path = Path(CHECKOUT) / "tests" / file if CHECKOUT else None
    return path if path is not None and path.is_file() else None


def whose_left_out() -> str:
    """Return the table's sentence about the tests that the source distribution lacks."""
    there = [f"`{name}`" for file, name in LEFT_OUT.items() if left_out(file)]
    missing = [f"`{name}`" for file, name in LEFT_OUT.items() if not left_out(file)]
    sentence = ""
    if CHECKOUT and there:
        package = (Path(CHECKOUT) / "src" / "transformers" / "__init__.py").read_text(encoding="utf-8")
        release = re.search(r'^__version__ = "(.*)"', package, re.MULTILINE)
        sentence = f", and {' and '.join(there)} as of {release[1] if release else 'an unknown release'}, from a clone"
    return sentence + (f" (its source distribution lacks {' and '.join(missing)})" if missing else "")


def run(*options: str) -> dict[tuple[str, str], Outcome]:
    """Return outcomes by (class, test), of all tests or of those that pytest's `options` select."""
    folder = BUILD / "transformers"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source_of("transformers") / "tests", folder / "tests")
    for file, name in LEFT_OUT.items():
        (folder / "tests" / file).parent.mkdir()
        if path := left_out(file):
            shutil.copy(path, folder / "tests" / file)
        else:
            (folder / "tests" / file).write_text(f"class {name}:\n    pass\n")
    for package in (folder / "tests", *(folder / "tests").glob("*/")):
        (package / "__init__.py").touch()
    shutil.copy(Path(__file__).with_name("common_tests.py"), folder / "test_common.py")
    return run_tests(folder, "test_common.py", *options, PYTHONPATH=TESTS)
