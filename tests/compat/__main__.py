"""`make compat`: runs the checks of each table, each in a process of its own, and writes docs/compatibility.md."""

import argparse
import importlib
import re
import subprocess
import sys
import warnings

import torch
from transformers.utils import logging

from .table import Table
from .upstream import BUILD, ROOT

TABLES = (
    "peft_tuners",
    "peft_suite",
    "transformers_suite",
    "generation",
    "trainer",
    "backbones",
    "quantized",
    "tools",
    "defects",
)
PAGE = ROOT / "docs" / "compatibility.md"
ABOUT = """# What works with T5WithFusion

Made by `make compat`: each cell is a check that was run, on the fused model with vectors in its batches and, where
that has a meaning, on the plain T5 that it was made of. *works*: it does, and gives what it should. *refused*: it
raises an error, whose sentence stands below the table. *wrong*: it goes through, and gives something else. Where the
plain T5 comes to something else than the fused one, it says so. What is wrong on both is the libraries' own: the last
table is of that.

"""


def sections_of(page: str) -> dict[str, str]:
    """The sections of the page by their titles: a table that is not made anew stays as it was."""
    parts = re.split(r"^(?=## )", page, flags=re.MULTILINE)[1:]
    return {part.partition("\n")[0].removeprefix("## "): part.rstrip("\n") + "\n" for part in parts}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", choices=[[], *TABLES], help="to run anew; default: all")
    parser.add_argument("--here", action="store_true", help="run one table in this process")
    options = parser.parse_args()
    if options.here:
        (name,) = options.tables
        warnings.simplefilter("ignore")
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        torch.set_num_threads(1)
        importlib.import_module(f"compat.{name}").make().save(BUILD / f"{name}.json")
        return 0
    for name in options.tables or TABLES:
        subprocess.run([sys.executable, "-m", "compat", name, "--here"], check=True, stdin=subprocess.DEVNULL)
    tables = [Table.read(BUILD / f"{name}.json") for name in TABLES if (BUILD / f"{name}.json").exists()]
    sections = sections_of(PAGE.read_text()) | {table.title: table.markdown() for table in tables}
    PAGE.write_text(ABOUT + "\n".join(sections.values()))
    worse = [line for table in tables for line in table.worse()]
    print("\n".join([f"{PAGE.relative_to(ROOT)}: {len(worse)} cells worse than the plain T5", *worse]))
    return int(bool(worse))


if __name__ == "__main__":
    sys.exit(main())
