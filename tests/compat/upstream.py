"""Run the libraries' own tests of a T5, from their source distributions, on a plain T5 and on a fused model."""

import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from importlib.metadata import version
from pathlib import Path

from warm import warm_python

from .table import Outcome

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "compat"
TESTS = os.pathsep.join([str(ROOT / "tests"), str(ROOT / "tests" / "support")])  # PYTHONPATH of the tests


def source_of(package: str) -> Path:
    """Return the unpacked source distribution of the installed release. Download it if it is missing."""
    name = f"{package}-{version(package)}"
    folder = BUILD / name
    if not folder.is_dir():
        command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--no-binary", package, "-d", BUILD]
        subprocess.run([*command, f"{package}=={version(package)}"], check=True, stdin=subprocess.DEVNULL)
        with tarfile.open(BUILD / f"{name}.tar.gz") as archive:
            archive.extractall(BUILD, filter="data")
    return folder


def run_tests(folder: Path, *arguments: str | Path, **environment: str) -> dict[tuple[str, str], Outcome]:
    """Run pytest in `folder`. Return outcomes by (class, name of the test); a skipped test is refused.

    Raises:
        RuntimeError: No test ran.
    """
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    # With an empty configuration in place of this project's and the library's.
    options = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", folder, f"--junitxml={report}"]
    done = subprocess.run(
        [warm_python(), "-m", "pytest", *options, *arguments],
        cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if not report.exists():
        raise RuntimeError(f"pytest wrote no report: {done.stdout[-2000:]}")
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    if not cases or any(
        error.attrib["message"] == "collection failure" for case in cases for error in case.iter("error")
    ):
        raise RuntimeError(f"no test ran: {done.stdout[-2000:]}")
    return {(case.attrib["classname"].rpartition(".")[2], case.attrib["name"]): _outcome(case) for case in cases}


def _outcome(case: ElementTree.Element) -> Outcome:
    for tag, status in (("failure", "wrong"), ("error", "wrong"), ("skipped", "refused")):
        problem = case.find(tag)
        if problem is not None:
            return Outcome(status, (problem.attrib.get("message") or "").splitlines()[0])
    return Outcome("works")
