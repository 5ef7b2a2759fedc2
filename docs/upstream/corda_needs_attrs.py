"""PEFT: its CorDA start imports `attr` (the package attrs), which PEFT does not ask pip for."""

import importlib.util
from importlib.metadata import requires
from pathlib import Path

import peft

asked = any(line.startswith("attrs") for line in requires("peft"))
source = Path(importlib.util.find_spec("peft.tuners.lora.corda").origin).read_text()
imports = "from attr import" in source
print(f"peft {peft.__version__}: corda.py imports attr: {imports}; peft requires attrs: {asked}, due True")
