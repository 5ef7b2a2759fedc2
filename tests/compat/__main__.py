"""`make compat`: run the checks of each table, each in its own process, and write docs/compatibility.md."""

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
    "ray_data",
    "defects",
)
# By its title on pages of earlier releases, the title that a section has now.
RENAMED = {
    "Backbones": "Base models",
    "Quantised bases on a CPU": "Quantised base models on a CPU",
    "What is the libraries' own": "Defects of the libraries",
}
PAGE = ROOT / "docs" / "compatibility.md"
ABOUT = """# What works with T5WithFusion

`make compat` writes this page. It runs checks on the fused model, with vectors in its batches, and on the plain T5 from
which the fused model was built. Each cell of a table is the result of a check on the fused model. A cell mentions the
plain T5 only if the plain T5 gives another result.

- *works*: the result is as expected.
- *refused*: the check raised an error, or skipped itself. A number leads to the reason below the table.
- *wrong*: the check raised no error, but the result is not as expected. If both models are wrong, the cause is in a
  library. [Defects](#defects-of-the-libraries) lists those that a script shows.

"""


def sections_of(page: str) -> dict[str, str]:
    """Return the sections of the page by their titles. The section of a table that is not run stays as it was."""
    sections = {}
    for part in re.split(r"^(?=## )", page, flags=re.MULTILINE)[1:]:
        title, _, body = part.removeprefix("## ").partition("\n")
        title = RENAMED.get(title, title)
        sections[title] = f"## {title}\n" + body.rstrip("\n") + "\n"
    return sections


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", choices=[[], *TABLES], help="tables to run; default: all")
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
