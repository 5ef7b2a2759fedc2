"""The package's types, as type checkers and `help` show them to users."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from t5fusion import DataCollatorWithFusion, T5FusionProcessor, T5WithFusion

pytest.importorskip("mypy")
ROOT = Path(__file__).parents[2]
CACHE = ROOT / "build" / "types_of_the_readme"  # what mypy knows of the libraries: it is kept, as that of `make lint`
README = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
# datasets has no types. Most modules of the other libraries have no effect on the README's, and take two thirds of
# mypy's time.
SETTINGS = """
[mypy]
[mypy-t5fusion.*]
ignore_errors = True
[mypy-datasets.*]
ignore_missing_imports = True
[mypy-transformers.models.*,torch._dynamo.*,torch._inductor.*,alembic.*,onnx.*,onnx_ir.*,onnxscript.*,optuna.*,sqlalchemy.*]
follow_imports = skip
[mypy-transformers.models,transformers.models.auto.*,transformers.models.t5.*]
follow_imports = normal
"""
REVEALED = """
reveal_type(model)
reveal_type(T5WithFusion.from_pretrained("tiny_t5", lexical_dim=8))
reveal_type(model.lora_config())
"""


@pytest.mark.slow
def test_mypy_finds_nothing_in_the_readme(tmp_path):
    """The package is in site-packages, so that mypy reports only errors in the user's code."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "t5fusion").symlink_to(ROOT)
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "readme.py").write_text(README + REVEALED, encoding="utf-8")
    (tmp_path / "user" / "mypy.ini").write_text(SETTINGS)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", CACHE, "readme.py"]
    environment = os.environ | {"MYPYPATH": str(site)}
    done = subprocess.run(command, cwd=tmp_path / "user", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    types = re.findall(r'Revealed type is "(.*)"', done.stdout)
    fused = "t5fusion.modeling_t5fusion.T5WithFusion"
    assert types == [fused, fused, "peft.tuners.lora.config.LoraConfig"]


@pytest.mark.parametrize(
    "function",
    [
        T5WithFusion.__init__,
        T5WithFusion.__new__,
        T5WithFusion.from_pretrained,
        T5WithFusion.load_adapter,
        T5WithFusion.forward,
        T5WithFusion.fit_fusion,
        T5WithFusion.lora_config,
        T5WithFusion.save_pretrained,
        T5FusionProcessor.__init__,
        T5FusionProcessor.__call__,
        T5FusionProcessor.encode,
        DataCollatorWithFusion.__call__,
    ],
    ids=lambda function: function.__qualname__,
)
def test_signatures_have_types(function):
    signature = inspect.signature(function)
    named = [each for each in signature.parameters.values() if each.name not in ("self", "cls")]
    assert all(each.annotation is not inspect.Parameter.empty for each in named)
    assert signature.return_annotation is not inspect.Signature.empty
