"""The reproductions of what is wrong in the libraries themselves, each run by itself."""

import ast
import subprocess
import sys

from .table import Outcome, Table
from .upstream import ROOT

FOLDER = ROOT / "docs" / "upstream"


def make() -> Table:
    table = Table(
        "What is the libraries' own",
        "Found on the way, and not of this package: a script each, in [upstream](upstream), that needs only the "
        "library, and what it prints on the releases above.",
        ["what", "printed"],
    )
    for script in sorted(FOLDER.glob("*.py")):
        what = (ast.get_docstring(ast.parse(script.read_text())) or "").partition("\n")[0]
        done = subprocess.run(
            [sys.executable, "-W", "ignore", script], capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        printed = " / ".join(line.strip() for line in done.stdout.splitlines() if line.strip()) or "nothing"
        cells = {"what": what, "printed": printed}
        table.cells[f"[{script.name}](upstream/{script.name})"] = {
            column: {"T5WithFusion": Outcome("number", said)} for column, said in cells.items()
        }
    return table
