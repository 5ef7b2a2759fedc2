"""PEFT: the CorDA initialisation imports `attr` (the package attrs), which is not among PEFT's requirements."""

import importlib.util
from importlib.metadata import requires
from pathlib import Path

import peft

required = any(line.startswith("attrs") for line in requires("peft"))
source = Path(importlib.util.find_spec("peft.tuners.lora.corda").origin).read_text()
imports = "from attr import" in source
print(f"peft {peft.__version__}: corda.py imports attr: {imports}; peft requires attrs: {required}, expected True")
