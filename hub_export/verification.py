"""Verify a bundle: reload it in a clean process that cannot see this package, by each loading path, and compare."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_token

from ..common.run_files import ADAPTER_CONFIG, find_folder, read_json
from ..common.run_folder import RunFolder
from ..common.saved_files import one_sentence_errors
from ..common.writing import check_space, temporary_folder, writing
from ..configuration_t5fusion import T5FusionConfig
from ..naming_t5fusion import UNPUSHED_BASE
from . import reader_check
from .card import CARD
from .manifest import file_digest, read_manifest, write_json
from .onnx_graphs import ENCODER
from .onnx_model import check_graphs
from .reference import REFERENCE


@dataclass
class Report:
    """The result of a verification, a line for each check.

    A line begins with "ok" if the check passed, "NO" if it failed, and "--" if it could not be made: transformers or
    peft refuse a loading path and say so, or onnxruntime is not installed.
    """

    lines: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    def add(self, mark: str, sentence: str) -> None:
        """Add the line of a check; `mark` is "ok", "NO" or "--"."""
        self.lines.append(f"{mark} {sentence}")
        if mark == "NO":
            self.failures.append(sentence)


def verify(
    name: str | Path,
    revision: str | None = None,
    use_cache: bool = False,
    fused_model: str | None = None,
    dtype: str | None = None,
    trust_code: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Reload a bundle as a reader would, and compare its outputs with the reference that it carries.

    Args:
        name: A folder, or the id of a repository on the Hub.
        revision: Branch, tag or commit of the repository.
        use_cache: Use this machine's cache of the Hub. By default everything is downloaded, which proves that readers
            can download it. If HF_HUB_OFFLINE is set, the cache is always used.
        fused_model: Repository of an untuned fused model, to try the adapter on it as well.
        dtype: Dtype to load in, such as "bfloat16". The reference must have been made in it.
        trust_code: Run the code that the bundle carries even if it is not this package's own.
        say: Function that gets each line of the report as it comes.

    Returns:
        The report. `report.ok` says whether no check failed.

    Raises:
        ValueError: `name` is not a bundle, or carries code that is not this package's, or weights that are not numbers.
        OSError: The Hub has no such repository, or cannot be reached; or the disk of temporary files is full.
    """
    report = Report()

    def add(mark: str, sentence: str) -> None:
        report.add(mark, sentence)
        say(report.lines[-1])

    with temporary_folder("t5fusion-verify-") as temporary:
        environment = clean_environment(temporary, use_cache)
        folder = find_folder(str(name), revision, cache_dir=environment["HF_HUB_CACHE"])
        manifest = read_manifest(folder)
        for mark, sentence in compare_digests(folder, manifest["files"]):
            add(mark, sentence)
        if not report.ok:
            return report
        bundle = RunFolder(folder)
        bundle.check()
        if not trust_code:
            check_code(folder)
        spec = make_spec(bundle, name, revision, fused_model, dtype)
        if spec["adapter"] and Path(name).is_dir():
            with writing(temporary):
                spec["pushed"] = str(copy_as_pushed(bundle, manifest["files"], temporary / "pushed"))
        for result in try_loading_paths(spec, temporary, environment):
            excuse = result.get("excuse")
            if not result["passed"] and not excuse:
                check_space(temporary)
            mark = "ok" if result["passed"] else "--" if excuse else "NO"
            add(mark, f"{result['path']}: {excuse or result['detail']}")
        if ENCODER in manifest["files"]:
            add(*run_graphs(folder))
    return report


def make_spec(
    bundle: RunFolder, name: str | Path, revision: str | None, fused_model: str | None, dtype: str | None
) -> dict[str, Any]:
    """Return what reader_check.py needs to know about a bundle (see its `main`).

    Raises:
        ValueError: The config is damaged, or belongs to a different kind of model.
    """
    with one_sentence_errors(f"{bundle.path / 'config.json'}"):
        config = T5FusionConfig.from_dict(dict(bundle.model_config))
    return {
        "name": str(bundle.path.resolve()) if Path(name).is_dir() else str(name),
        "adapter": bundle.has_adapter,
        "pipeline": bool(bundle.model_config.get("custom_pipelines")),  # the earliest bundles have none
        "reference": str((bundle.path / REFERENCE).resolve()),
        "revision": revision,
        "base_model": config.backbone,
        "base_revision": config.backbone_revision,
        "fused_model": fused_model,
        "dtype": dtype,
        "unpushed_base": UNPUSHED_BASE,
    }


def clean_environment(temporary: Path, use_cache: bool) -> dict[str, str]:
    """Return a reader's environment: an empty cache, the Hub's address and token, and none of our settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "HF_MODULES", "T5FUSION"))}
    cached = use_cache or constants.is_offline_mode()
    cache = constants.HF_HUB_CACHE if cached else str(temporary / "hub")
    kept |= {"HF_HOME": str(temporary), "HF_HUB_CACHE": cache, "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return kept | ({"HF_TOKEN": token} if (token := get_token()) else {})


def compare_digests(folder: Path, expected: dict[str, str]) -> list[tuple[str, str]]:
    """Return a mark and a sentence for each file that is not as it was written, or "ok" and one sentence for all.

    An edited card is "ok" too, because its author may edit it.
    """
    lines = []
    for name, digest in expected.items():
        if not (folder / name).exists():
            lines.append(("NO", f"{name} is missing"))
        elif file_digest(folder / name) != digest:
            edited = ("ok", f"{CARD} was edited since the export, as it may be")
            lines.append(edited if name == CARD else ("NO", f"{name} is damaged: it is not as it was written"))
    return lines or [("ok", f"{len(expected)} files, as they were written")]


def copy_as_pushed(bundle: RunFolder, names: Iterable[str], copy: Path) -> Path:
    """Copy a bundle so that its adapter names the copy itself as its base model, as in a pushed repository."""
    copy.mkdir()
    for name in names:
        try:
            (copy / name).symlink_to((bundle.path / name).resolve())
        except OSError:  # Windows allows links to some users only.
            shutil.copy2(bundle.path / name, copy / name)
    (copy / ADAPTER_CONFIG).unlink()
    write_json(copy / ADAPTER_CONFIG, bundle.adapter_config | {"base_model_name_or_path": str(copy), "revision": None})
    return copy


def check_code(folder: Path) -> None:
    """Check that loading a bundle runs no code but this package's own.

    Raises:
        ValueError: It would run other code. The message names the file.
    """
    own_code = {file.name: file.read_bytes() for file in Path(__file__).parents[1].glob("*_t5fusion.py")}
    foreign = [file.name for file in sorted(folder.glob("*.py")) if file.read_bytes() != own_code.get(file.name)]
    for file in sorted(folder.glob("*config.json")):
        classes = read_json(file).get("auto_map") or {}
        if not isinstance(classes, dict):
            raise ValueError(
                f"`auto_map` of {file} is a {type(classes).__name__}; expected an object. Export it again."
            )
        entries = [[entry] if isinstance(entry, str) else entry for entry in classes.values()]
        names = [name for entry in entries for name in entry if name]
        names += pipelines_of(file)
        foreign += [f"{file.name} ({name})" for name in names if f"{name.partition('.')[0]}.py" not in own_code]
    if foreign:
        raise ValueError(
            f"{foreign[0]} of {folder.name} is not the code of this t5fusion: it belongs to a different release, or to "
            "somebody else. Verifying would run it, with your token. Read it, then pass --trust-code."
        )


def pipelines_of(config_file: Path) -> list[str]:
    """Return the classes that `transformers.pipeline` would run for a config: "file.Class", or "REPO_ID--file.Class".

    Raises:
        ValueError: The config's `custom_pipelines` are damaged.
    """
    try:
        return [str(task["impl"]) for task in (read_json(config_file).get("custom_pipelines") or {}).values()]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"`custom_pipelines` of {config_file} are damaged. Export it again.") from error


def run_graphs(folder: Path) -> tuple[str, str]:
    """Return a mark and a sentence about the ONNX graphs. Graphs hold no code, so they run in this process."""
    try:
        return "ok", f"ONNX graphs: {check_graphs(folder)}"
    except ImportError as error:
        return "--", f"ONNX graphs were not run: {error}"
    except Exception as error:  # A reader would see it, whatever its type.
        return "NO", f"ONNX graphs: {reader_check.one_sentence(error)}"


def try_loading_paths(spec: dict[str, Any], temporary: Path, environment: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Run reader_check.py in a process of its own, and yield its result for each loading path."""
    file = temporary / "spec.json"
    with writing(temporary):
        file.write_text(json.dumps(spec))
    # -I leaves out PYTHONPATH, the user's site-packages and the current folder.
    command = [sys.executable, "-I", reader_check.__file__, str(file)]
    errors = temporary / "stderr"  # A file, because a pipe that nobody reads meanwhile would fill up.
    with errors.open("w") as stderr, subprocess.Popen(
        command, cwd=temporary, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr,
        text=True,
    ) as process:  # fmt: skip
        for line in process.stdout or ():
            if line.startswith("{"):
                yield json.loads(line)
    if process.returncode:
        last = (errors.read_text(errors="replace").strip().splitlines() or ["no message"])[-1]
        yield {"path": "the process that loads the bundle", "passed": False, "detail": f"ended early: {last}"}
