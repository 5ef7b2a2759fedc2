"""Scripts that reproduce defects of the libraries. Each runs in its own process."""

import ast
import subprocess
import sys

from .table import Outcome, Table
from .upstream import ROOT

FOLDER = ROOT / "docs" / "upstream"


def make() -> Table:
    table = Table(
        "Defects of the libraries",
        "These defects of other libraries were found during the work on this package. Each has a script in "
        "[upstream](upstream) that needs only the library. The last column shows what the script prints.",
        ["defect", "printed"],
    )
    for script in sorted(FOLDER.glob("*.py")):
        defect = (ast.get_docstring(ast.parse(script.read_text())) or "").partition("\n")[0]
        done = subprocess.run(
            [sys.executable, "-W", "ignore", script], capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        printed = " / ".join(line.strip() for line in done.stdout.splitlines() if line.strip()) or "nothing"
        cells = {"defect": defect, "printed": printed}
        table.cells[f"[{script.name}](upstream/{script.name})"] = {
            column: {"T5WithFusion": Outcome("number", number)} for column, number in cells.items()
        }
    return table
