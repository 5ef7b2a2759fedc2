"""transformers' common tests of models, from its source distribution."""

import shutil
from collections import Counter
from pathlib import Path

from .table import Outcome, Table
from .upstream import BUILD, ROOT, run_tests, source_of

# what their common tests import and the distribution leaves out
LEFT_OUT = {"exporters/test_export.py": "ExportTesterMixin", "generation/test_utils.py": "GenerationTesterMixin"}
CLASSES = {"TestT5": "T5", "TestWithVectors": "with vectors", "TestWithoutVectors": "without vectors"}


def make() -> Table:
    # one is of the tests' class, not of the model: it would pass, by the empty class of the name
    results = run("-n", "2", "-k", "not generation_tester_mixin_inheritance")
    cells: dict[str, dict[str, dict[str, Outcome]]] = {}
    for (kind, test), outcome in sorted(results.items(), key=lambda result: result[0]):  # in no order of its own
        if kind == "TestT5":
            continue
        cells.setdefault(f"`{test}`", {})[CLASSES[kind]] = {"T5": results["TestT5", test], "T5WithFusion": outcome}
    counts = Counter((kind, outcome.status) for (kind, _), outcome in results.items())
    passed = ", ".join(f"{name} {counts[kind, 'works']}" for kind, name in CLASSES.items())
    return Table(
        "transformers' common tests",
        "`ModelTesterMixin` of the installed transformers. (`GenerationTesterMixin` and "
        "`ExportTesterMixin` are not in the source distribution; see the next table.) *refused* is a test that skips "
        f"itself, or says why it is not for this model. Passed: {passed}.",
        ["with vectors", "without vectors"],
        cells,
    )


def run(*options: str) -> dict[tuple[str, str], Outcome]:
    """(class, test) -> outcome, of all tests, or of those that pytest's `options` choose."""
    folder = BUILD / "transformers"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source_of("transformers") / "tests", folder / "tests")
    for file, name in LEFT_OUT.items():
        (folder / "tests" / file).parent.mkdir()
        (folder / "tests" / file).write_text(f"class {name}:\n    pass\n")
    for package in (folder / "tests", *(folder / "tests").glob("*/")):
        (package / "__init__.py").touch()
    shutil.copy(Path(__file__).with_name("common_tests.py"), folder / "test_common.py")
    return run_tests(folder, "test_common.py", *options, PYTHONPATH=str(ROOT / "tests"))
