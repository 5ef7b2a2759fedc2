"""Bundles that the code of 0.1.0 exported still verify and load, with the same outputs (bundle_by_0_1)."""

import shutil
from pathlib import Path

import pytest

from t5fusion.hub_export.card import find_sections
from t5fusion.hub_export.manifest import read_manifest

SAVED = Path(__file__).parent / "bundle_by_0_1"
COMMIT = "5eed" * 10  # of google/flan-tiny, the base model that config.json names
CHECK = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from t5fusion import T5FusionProcessor, T5WithFusion
from t5fusion.common.run_folder import load_trained
from t5fusion.hub_export.verification import verify

bundle = Path(sys.argv[1])
report = verify(bundle, trust_code=True)
assert report.ok, report.lines
saved = load_file(bundle / "reference.safetensors")
inputs = {name.removeprefix("inputs."): value for name, value in saved.items() if name.startswith("inputs.")}
for model in (T5WithFusion(bundle), load_trained(bundle)[0]):
    with torch.no_grad():
        logits = model.eval()(**inputs, decoder_input_ids=saved["written"]).logits[..., saved["columns"]]
    torch.testing.assert_close(logits, saved["logits"], rtol=1e-5, atol=1e-5)  # rounding differs between CPUs
assert T5FusionProcessor.from_pretrained(bundle).template == "Filename: {text}"
print("\\n".join(report.lines))
"""


@pytest.fixture
def unpack(tmp_path):
    """`unpack(kind)` puts a bundle together, and its base model into the cache that `run_python` uses."""
    repository = tmp_path / "hf_home" / "hub" / "models--google--flan-tiny"
    shutil.copytree(SAVED / "base_model", repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)

    def put_together(kind):
        bundle = tmp_path / kind
        for part in (kind, "shared"):
            shutil.copytree(SAVED / part, bundle, dirs_exist_ok=True)
        shutil.unpack_archive(SAVED / "code.zip", bundle)
        return bundle

    return put_together


@pytest.mark.parametrize(("kind", "ways"), [("adapter", 7), ("merged", 2)])
def test_a_bundle_verifies_and_loads(unpack, run_python, kind, ways):
    lines = run_python(CHECK, unpack(kind)).splitlines()
    assert sum("bit for bit" in line or "the reference was made elsewhere" in line for line in lines) == ways


OVERWRITE = """
import sys
from pathlib import Path
from t5fusion.hub_export.bundle import export
from t5fusion.hub_export.upload import prepare_files
from t5fusion.hub_export.verification import verify

source, bundle, staged = map(Path, sys.argv[1:])
prepare_files(bundle, staged, "me/describer", "v1")  # what `push` sends
export(source, bundle, overwrite=True)
assert verify(bundle).ok
"""


def test_an_export_over_a_bundle_keeps_its_card(unpack, run_python, tmp_path):
    bundle, staged = unpack("adapter"), tmp_path / "staged"
    source = Path(shutil.copytree(bundle, tmp_path / "source"))
    card = (bundle / "README.md").read_text(encoding="utf-8")
    mine = card.replace("tags:\n", "license: mit\ntags:\n- mine\n")
    (bundle / "README.md").write_text(mine + "\n## Thanks\n\nTo all.\n", encoding="utf-8")
    staged.mkdir()
    run_python(OVERWRITE, source, bundle, staged)
    again = (bundle / "README.md").read_text(encoding="utf-8")
    assert "license: mit" in again and "- mine\n" in again and "To all." in again
    assert list(find_sections(again)) == list(find_sections(card))
    sent = (staged / "README.md").read_text(encoding="utf-8")
    assert "To all." in sent and 'from_pretrained("me/describer"' in sent and 'revision="v1"' in sent
    assert read_manifest(staged)["kind"] == read_manifest(bundle)["kind"] == "adapter"
