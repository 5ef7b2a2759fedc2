"""The wheel's content, the wheel outside the checkout, and the pinned versions."""

import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from warm import warm_python

tomllib = pytest.importorskip("tomllib")  # Python 3.11

ROOT = Path(__file__).parents[1]
FOLDERS = (".", "cli", "common", "demo", "engines", "finetune", "hooks", "hub_export", "tiny_t5", "tiny_t5_v2")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
GPU = ("cuda-", "nvidia-", "triton")  # dependencies of torch's build for GPUs, which are not pinned


def run(*command, cwd, **options):
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, **options
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def pip(*arguments, cwd):
    return run(sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def sources():
    """The checkout's files, also those that are not yet added to git, without ignored ones."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    names = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0")
    return sorted({name for name in names if name and (ROOT / name).is_file()})


@pytest.fixture(scope="module")
def wheel(sources, tmp_path_factory):
    """The wheel, built in a copy of the checkout without ignored files."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in sources:
        (folder / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "copy" / name)
    build = ["--no-deps", "--no-index", "--no-build-isolation"]
    pip("wheel", *build, "--wheel-dir", folder, folder / "copy", cwd=folder)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--no-index", "--target", folder / "site", wheel, cwd=folder)
    return folder / "site"


def run_installed(installed, script):
    environment = {"PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1", "PATH": "", "HOME": str(installed.parent)}
    environment["OMP_NUM_THREADS"] = "1"  # as the interpreter that has imported torch
    return run(warm_python(), "-c", script, cwd=installed.parent, env=environment).split()


def test_the_wheel_holds_the_package_and_nothing_else(sources, wheel):
    names = zipfile.ZipFile(wheel).namelist()
    files = {name for name in names if not re.match(r"t5fusion-[^/]+\.dist-info/", name)}
    modules = {name for name in sources if name.endswith(".py") and str(Path(name).parent) in FOLDERS}
    base = {name for name in sources if re.fullmatch(r"tiny_t5(?:_v2)?/([^/]+\.(safetensors|json)|README\.md)", name)}
    data = {"py.typed", "model_card.md"} & set(sources)
    assert files == {f"t5fusion/{name}" for name in modules | base | data}
    assert {"t5fusion/__init__.py", "t5fusion/py.typed", "t5fusion/cli/app.py"} <= files
    assert f"t5fusion-{PROJECT['version']}.dist-info/licenses/LICENSE" in names


def test_the_wheel_is_small(wheel):
    assert wheel.stat().st_size < 30e6


def test_every_package_folder_is_listed(sources):
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {Path(name).parent.as_posix() for name in sources if Path(name).name == "__init__.py"}
    assert {"t5fusion" if folder == "." else f"t5fusion.{folder}" for folder in folders} == set(listed)


def test_the_wheel_works_outside_the_checkout(installed):
    script = (
        "import t5fusion\nfrom importlib.metadata import distribution\n"
        "(entry,) = distribution('t5fusion').entry_points.select(group='console_scripts', name='t5fusion')\n"
        "print(t5fusion.__file__, entry.load().__code__.co_filename, t5fusion.__version__)"
    )
    package, command, version = run_installed(installed, script)
    assert Path(package) == installed / "t5fusion" / "__init__.py"
    assert Path(command) == installed / "t5fusion" / "__main__.py"
    assert version == PROJECT["version"]


def test_the_wheel_contains_the_embedded_base_models(installed):
    script = (
        "from t5fusion import T5WithFusion, tiny_t5, tiny_t5_v2\nfrom transformers import AutoTokenizer\n"
        "for folder in (tiny_t5.PATH, tiny_t5_v2.PATH):\n"
        "    m, t = T5WithFusion.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)\n"
        "    print(folder, m.num_parameters() > 0, len(t) <= m.config.vocab_size)"
    )
    folders = [str(installed / "t5fusion" / name) for name in ("tiny_t5", "tiny_t5_v2")]
    assert run_installed(installed, script) == [folders[0], "True", "True", folders[1], "True", "True"]


def constraints():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_every_constraint_is_one_exact_version():
    lines = constraints()
    for line in lines:
        assert re.fullmatch(r"[a-z0-9][a-z0-9-]*==\d+(\.\w+)*", line), line
    names = [line.partition("==")[0] for line in lines]
    assert names == sorted(set(names))
    assert PROJECT["name"] not in names


def test_every_package_that_is_installed_has_its_constraint():
    requirements = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    todo, seen, missing = [Requirement(line) for lines in requirements for line in lines], set(), set()
    pins = dict(line.split("==") for line in constraints())
    own_venvs = [PROJECT["optional-dependencies"][extra] for extra in ("compat", "bench")]
    elsewhere = {str(Requirement(line)) for lines in own_venvs for line in lines}
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if str(requirement) in seen or name.startswith(GPU):
            continue
        seen.add(str(requirement))
        if name not in pins or not requirement.specifier.contains(pins[name], prereleases=True):
            missing.add(str(requirement))
        if str(requirement) in elsewhere:
            continue
        for line in metadata.distribution(name).requires or []:
            further = Requirement(line)
            wanted = [{"extra": extra} for extra in requirement.extras or {""}]
            if further.marker is None or any(further.marker.evaluate(extra) for extra in wanted):
                todo.append(further)
    assert not missing
