"""The options of a training, without a training."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
IMPORT_OPTIONS = """
import sys, types
package = sys.modules["t5fusion"] = types.ModuleType("t5fusion")  # without what its own __init__ imports
package.__path__ = [sys.argv[1]]
before = set(sys.modules)
import t5fusion.finetune.options
print(*sorted(set(sys.modules) - before))
"""


def test_the_options_import_nothing_slow():
    command = [sys.executable, "-c", IMPORT_OPTIONS, str(ROOT)]
    imported = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "t5fusion.finetune.options" in imported
    assert {name.partition(".")[0] for name in imported} <= {*sys.stdlib_module_names, "t5fusion"}
