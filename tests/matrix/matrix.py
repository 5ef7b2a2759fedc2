"""Opens every door of hub_export/reader_check.py with one release of transformers and peft after another.

    python tests/matrix/matrix.py --releases 5.0.0 newest

Bundles of all kinds are made by the interpreter that runs this and pushed to the Hub of hub_server.py; then each
release opens them in a virtual environment of its own, as its reader would. Exit code 1 if a model came out other than
it was trained, or a door was shut that is not among `SHUT`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path

from hub_server import HubServer

Spec = tuple[str, str, dict]  # the model, the place that it is loaded from, and what reader_check.py needs to know
ROOT = Path(__file__).resolve().parents[2]
DOORS = ROOT / "hub_export" / "reader_check.py"
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "HF_", "T5FUSION"))}
TORCH = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))

# Of each release, the newest peft that it works with and, if that is another, the oldest (None: what pip finds). Up to
# 0.19 AutoPeftModel forgets the revision of an adapter; up to 0.21.1 peft needs what 5.20 took out of `generate`.
PEFT: dict[str, tuple[str | None, ...]] = {
    "5.0.0": ("0.21.2", "0.20.0"),
    "5.5.4": ("0.21.2", "0.20.0"),
    "5.10.4": ("0.21.2", "0.20.0"),
    "5.17.0": ("0.21.2", "0.20.0"),
    "5.20.2": ("0.21.2",),
    "newest": (None,),
}

# Run by each release: imports once, then opens each model's doors in a process that has loaded no other model.
OPEN = """
import os, runpy, sys
import peft, torch, transformers
from transformers import AutoModelForSeq2SeqLM, AutoProcessor, T5ForConditionalGeneration, T5Tokenizer

print(f'{{"transformers": "{transformers.__version__}", "peft": "{peft.__version__}"}}', flush=True)
doors, package, *specs = sys.argv[1:]
if package:
    sys.path.insert(0, package)
    import t5fusion
for number, spec in enumerate(specs):
    print(f'{{"spec": {number}}}', flush=True)
    child = os.fork()
    if child == 0:
        sys.argv = [doors, spec]
        runpy.run_path(doors, run_name="__main__")
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        print('{"door": "the process", "held": false, "how": "ended early"}', flush=True)
"""

ON_A_HUB = "not on a Hub yet"  # in the sentence that stands for a base where a bundle was not pushed
OVER_ONE_LINE = ("AutoModel", "AutoModelForSeq2SeqLM", "PeftModel over AutoModelForSeq2SeqLM")


@dataclass(frozen=True)
class Shut:
    """Doors that transformers or peft themselves keep shut in a place, up to a release, and what is said there."""

    doors: tuple[str, ...]
    place: str
    says: str
    before: tuple[int, ...] = (999,)


SHUT = (
    # PEFT loads an adapter's base by its name alone, so not from the folder that the adapter lies in.
    Shut(("AutoPeftModelForSeq2SeqLM",), "folder", ON_A_HUB),
    # So do the Auto classes of 5.0; later ones take a folder with a config.json for its own base.
    Shut(OVER_ONE_LINE, "folder", ON_A_HUB, before=(5, 5)),
)


def install(venv: Path, *arguments: str) -> None:
    """Torch comes first, so that the build at hand is what others find, and is named each time, lest it be replaced."""
    pip = [venv / "bin" / "python", "-I", "-m", "pip", "install", "-qq", "--disable-pip-version-check", TORCH]
    if not (venv / "bin" / "python").exists():
        say(f"{venv.name}: making {venv}")
        subprocess.run([sys.executable, "-m", "venv", venv], env=ENVIRONMENT, check=True)
        subprocess.run(pip, env=ENVIRONMENT, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    subprocess.run([*pip, *arguments], env=ENVIRONMENT, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)


@dataclass
class Run:
    """What one release of transformers with one of peft made of all the models."""

    transformers: str
    peft: str
    found: dict[tuple[str, str], Counter]  # of (model, place): how many doors are right, refused, wrong
    sentences: dict[str, set[str]]  # what was said by those that are not right: the doors

    def add(self, key: tuple[str, str], door: dict) -> None:
        result = self._result(key[1], door)
        self.found.setdefault(key, Counter())[result] += 1
        if result == "right":
            self.found[key]["to the bit"] += door["how"] == "to the bit"
        else:
            self.sentences.setdefault(f"{result}: {door['how']}", set()).add(door["door"])

    def _result(self, place: str, door: dict) -> str:
        if door["held"]:
            return "right"
        release = tuple(int(number) for number in self.transformers.split(".")[:2])
        known = (
            door["door"] in shut.doors and place.startswith(shut.place) and shut.says in door["how"]
            for shut in SHUT
            if release < shut.before
        )
        return "refused" if any(known) else "WRONG"

    def lines(self) -> Iterator[str]:
        """One for each model and place, then each sentence once."""
        for (model, place), count in self.found.items():
            yield (
                f"transformers {self.transformers}, peft {self.peft}, {model}, {place}: {count['right']} right "
                f"({count['to the bit']} to the bit), {count['refused']} refused, {count['WRONG']} wrong"
            )
        for sentence, doors in self.sentences.items():
            yield f"  {sentence} [{', '.join(sorted(doors))}]"

    def row(self) -> str:
        total = sum(self.found.values(), Counter())
        cells = (self.transformers, self.peft, total["right"], total["to the bit"], total["refused"], total["WRONG"])
        return f"| {' | '.join(map(str, cells))} |"


def open_all(venv: Path, specs: list[Spec], work: Path, hub: HubServer) -> Run:
    """All doors to all models, in all places.

    First with an empty cache; then offline with what that left in it; then so where this package can be imported.
    """
    home = Path(tempfile.mkdtemp(dir=work))
    (home / "installed").mkdir()
    (home / "installed" / "t5fusion").symlink_to(ROOT)
    run = Run("", "", {}, {})
    for offline, package in (("", ""), (", offline", ""), (", offline, beside t5fusion", str(home / "installed"))):
        files = [home / f"{number}{offline}.json" for number in range(len(specs))]
        for file, (_, _, spec) in zip(files, specs, strict=True):
            file.write_text(json.dumps(spec | {"hide": not package}))
        environment = ENVIRONMENT | hub.environment(home) | {"HF_HUB_OFFLINE": "1" if offline else "0"}
        command = [venv / "bin" / "python", "-I", "-c", OPEN, DOORS, package, *files]
        with subprocess.Popen(
            command, cwd=home, env=environment | {"OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=(home / "stderr").open("w"), text=True,
        ) as process:  # fmt: skip
            for line in process.stdout or ():
                said = json.loads(line) if line.startswith("{") else {}
                if "transformers" in said:
                    run.transformers, run.peft = said["transformers"], said["peft"]
                elif "spec" in said:
                    model, place, _ = specs[said["spec"]]
                elif "door" in said:
                    run.add((model, place + offline), said)
        if process.returncode:
            raise RuntimeError(f"{venv}: {(home / 'stderr').read_text()[-2000:]}")
    return run


def try_release(release: str, folder: Path, specs: list[Spec], work: Path, hub: HubServer) -> list[Run]:
    """The newest peft first, with all that it needs; then the oldest in its place."""
    venv, runs = folder / release, []
    for peft in PEFT[release]:
        began = time.monotonic()
        if peft is None:
            install(venv, "--upgrade", "transformers", "peft")
        else:
            install(venv, *(["--no-deps"] if runs else [f"transformers=={release}"]), f"peft=={peft}")
        installed = time.monotonic()
        runs.append(open_all(venv, specs, work, hub))
        seconds = f"{installed - began:.0f} s to install, {time.monotonic() - installed:.0f} s to open"
        say(f"transformers {release}, peft {runs[-1].peft}: {seconds}")
    return runs


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--releases", nargs="+", choices=PEFT, default=list(PEFT), help="of transformers")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "matrix", help="of the virtual environments")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="releases at a time")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, HubServer(tokens={"hf_owner": "me"}) as hub:
        work = Path(temporary)
        os.environ.update(hub.environment(work / "author", "hf_owner"))  # before huggingface_hub is imported
        from matrix_models import make_models

        specs = [(model.name, place, spec) for model in make_models(hub, work) for place, spec in model.specs()]
        say(f"{len(specs)} models in their places")
        with ThreadPoolExecutor(options.jobs) as pool:
            release = partial(try_release, folder=folder, specs=specs, work=work, hub=hub)
            runs = [run for runs in pool.map(release, options.releases) for run in runs]
    print("\n".join(line for run in runs for line in run.lines()))
    print(f"\nOf {date.today()}, {TORCH}:\n")
    print("| transformers | peft | doors right | of them to the bit | refused in words | wrong |")
    print("|---|---|---|---|---|---|")
    print("\n".join(run.row() for run in runs))
    return int(any(count["WRONG"] for run in runs for count in run.found.values()))


if __name__ == "__main__":
    sys.exit(main())
