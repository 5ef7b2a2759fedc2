"""Prove a bundle: reload it in a clean process that cannot see this package, through every door, and compare."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_token

from ..common.run_folder import find_folder
from ..common.saved_files import check_files as check_contents
from ..common.saved_files import read_json, told
from ..configuration_t5fusion import T5FusionConfig
from ..naming_t5fusion import UNPUSHED_BASE
from . import reader_check
from .bundle import CARD
from .manifest import file_digest, read_manifest, write_json
from .onnx_graphs import ENCODER
from .onnx_model import check_graphs
from .reference import REFERENCE


@dataclass
class Report:
    """What held: a line each, in front "ok", "NO" or "--": a door that transformers keeps shut, and says so, or ONNX
    graphs where onnxruntime is not installed."""

    lines: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.failures

    def add(self, mark: str, what: str) -> None:
        self.lines.append(f"{mark} {what}")
        if mark == "NO":
            self.failures.append(what)


def verify(
    name: str | Path,
    revision: str | None = None,
    use_cache: bool = False,
    base: str | None = None,
    dtype: str | None = None,
    trust_code: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Reloads a bundle, in a folder or on the Hub, as a reader would, and compares with the outputs that it carries.

    Args:
        name: a folder, or the id of a repository.
        revision: branch, tag or commit of the repository.
        use_cache: take what this machine's cache of the Hub holds, rather than prove that all of it can be had. So it
            is done in any case where HF_HUB_OFFLINE is set.
        base: id of a repository of the fused, untuned model, to try the adapter on.
        dtype: load in this dtype; the reference must have been made in it.
        trust_code: run the code that the bundle carries even where it is not this package's own.
        say: is told each line of the report as it comes.

    Raises:
        ValueError: `name` is no bundle, or carries code that is not this package's, or weights that are not numbers.
        OSError: it cannot be had from the Hub.
    """
    report = Report()

    def add(mark: str, what: str) -> None:
        report.add(mark, what)
        say(report.lines[-1])

    with tempfile.TemporaryDirectory(prefix="t5fusion-verify-") as temporary:
        environment = clean_environment(Path(temporary), use_cache)
        folder = find_folder(str(name), revision, cache_dir=environment["HF_HUB_CACHE"])
        manifest = read_manifest(folder)
        for mark, what in check_files(folder, manifest["files"]):
            add(mark, what)
        if not report.ok:
            return report
        check_contents(folder)
        if not trust_code:
            check_code(folder)
        with told(f"{folder / 'config.json'}"):
            config = T5FusionConfig.from_dict(read_json(folder / "config.json"))
        spec = {
            "name": str(folder.resolve()) if Path(name).is_dir() else str(name),
            "adapter": (folder / "adapter_config.json").exists(),
            "reference": str((folder / REFERENCE).resolve()),
            "revision": revision,
            "backbone": config.backbone,
            "backbone_revision": config.backbone_revision,
            "base": base,
            "dtype": dtype,
            "unpushed_base": UNPUSHED_BASE,
        }
        if spec["adapter"] and Path(name).is_dir():
            spec["pushed"] = str(copy_as_pushed(folder, manifest["files"], Path(temporary) / "pushed"))
        for found in open_doors(spec, Path(temporary), environment):
            shut = found.get("refused")
            add("ok" if found["held"] else "--" if shut else "NO", f"{found['door']}: {shut or found['how']}")
        if ENCODER in manifest["files"]:
            add(*run_graphs(folder))
    return report


def clean_environment(temporary: Path, use_cache: bool) -> dict[str, str]:
    """That of a reader: nothing loaded before, none of our settings; the Hub's address and token stay."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "HF_MODULES", "T5FUSION"))}
    cached = use_cache or constants.is_offline_mode()
    cache = constants.HF_HUB_CACHE if cached else str(temporary / "hub")
    kept |= {"HF_HOME": str(temporary), "HF_HUB_CACHE": cache, "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return kept | ({"HF_TOKEN": token} if (token := get_token()) else {})


def check_files(folder: Path, expected: dict[str, str]) -> list[tuple[str, str]]:
    """Mark and sentence for each file that is missing, or is not what was written; the card may be edited."""
    found = []
    for name, written in expected.items():
        if not (folder / name).exists():
            found.append(("NO", f"{name} is missing"))
        elif file_digest(folder / name) != written:
            edited = ("ok", f"{CARD} was edited since the export, as it may be")
            found.append(edited if name == CARD else ("NO", f"{name} is damaged: it is not what was written"))
    return found or [("ok", f"{len(expected)} files, as they were written")]


def copy_as_pushed(folder: Path, names: Iterable[str], copy: Path) -> Path:
    """A bundle whose adapter names the bundle itself as its base, as in the repository that `push` makes."""
    copy.mkdir()
    for name in names:
        try:
            (copy / name).symlink_to((folder / name).resolve())
        except OSError:  # Windows lets not everyone make links
            shutil.copy2(folder / name, copy / name)
    config = read_json(folder / "adapter_config.json") | {"base_model_name_or_path": str(copy), "revision": None}
    (copy / "adapter_config.json").unlink()
    write_json(copy / "adapter_config.json", config)
    return copy


def check_code(folder: Path) -> None:
    """ValueError, naming the file, if loading the bundle would run code that is not this package's own."""
    ours = {file.name: file.read_bytes() for file in Path(__file__).parents[1].glob("*_t5fusion.py")}
    strange = [file.name for file in sorted(folder.glob("*.py")) if file.read_bytes() != ours.get(file.name)]
    for file in sorted(folder.glob("*config.json")):
        classes = read_json(file).get("auto_map") or {}
        if not isinstance(classes, dict):
            raise ValueError(
                f"`auto_map` of {file} is a {type(classes).__name__}; expected an object. Export it again."
            )
        classes = classes.values()
        named = [name for entry in classes for name in ([entry] if isinstance(entry, str) else entry) if name]
        strange += [f"{file.name} ({name})" for name in named if f"{name.partition('.')[0]}.py" not in ours]
    if strange:
        raise ValueError(
            f"{strange[0]} of {folder.name} is not the code of this t5fusion, but of another release or of somebody "
            "else, and to verify runs it, with your token. Read it, then give --trust-code."
        )


def run_graphs(folder: Path) -> tuple[str, str]:
    """Mark and sentence for the ONNX graphs. They hold no code, so this process runs them as well as a clean one."""
    try:
        return "ok", f"ONNX graphs: {check_graphs(folder, folder / REFERENCE)}"
    except ImportError as error:
        return "--", f"ONNX graphs were not run: {error}"
    except Exception as error:  # whatever onnxruntime raises is what a reader would see
        return "NO", f"ONNX graphs: {reader_check.one_sentence(error)}"


def open_doors(spec: dict[str, Any], temporary: Path, environment: dict[str, str]):
    """Yields what reader_check.py, run by an interpreter of its own, says of each door."""
    file = temporary / "spec.json"
    file.write_text(json.dumps(spec))
    command = [
        sys.executable,
        "-I",
        reader_check.__file__,
        str(file),
    ]  # -I: no user site, no PYTHONPATH, not this folder
    complaint = temporary / "stderr"  # a file: a pipe that nobody reads meanwhile fills up
    with complaint.open("w") as stderr, subprocess.Popen(
        command, cwd=temporary, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr,
        text=True,
    ) as process:  # fmt: skip
        for line in process.stdout or ():
            if line.startswith("{"):
                yield json.loads(line)
    if process.returncode:
        last = (complaint.read_text(errors="replace").strip().splitlines() or ["no message"])[-1]
        yield {"door": "the process that opens the doors", "held": False, "how": f"ended early: {last}"}
