"""Try every loading path of hub_export/reader_check.py with one release of transformers and peft after another.

    python tests/matrix/matrix.py --releases 5.0.0 newest

The interpreter that runs this exports bundles of all kinds and pushes them to the Hub of hub_server.py. Then each
release loads them in a virtual environment of its own, as its reader would. The exit code is 1 if a loading path gave
another model than was trained, or was refused and is not among `KNOWN_REFUSALS`.
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

Spec = tuple[str, str, dict]  # the model, where it is loaded from, and the SPEC of reader_check.py
ROOT = Path(__file__).resolve().parents[2]
READER_CHECK = ROOT / "hub_export" / "reader_check.py"
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "HF_", "T5FUSION"))}
TORCH = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))

# For each release, the newest peft that works with it and, if that is another, the oldest. None stands for the one
# that pip chooses. AutoPeftModel ignores the revision of an adapter up to peft 0.19, and up to 0.21.1 peft needs a
# function of `generate` that transformers 5.20 removed.
PEFT: dict[str, tuple[str | None, ...]] = {
    "5.0.0": ("0.21.2", "0.20.0"),
    "5.5.4": ("0.21.2", "0.20.0"),
    "5.10.4": ("0.21.2", "0.20.0"),
    "5.17.0": ("0.21.2", "0.20.0"),
    "5.20.2": ("0.21.2",),
    "newest": (None,),
}

# Each release runs this. It imports once, then tries each model in a process that has loaded no other model.
TRY_ALL = """
import os, runpy, sys
import peft, torch, transformers
from transformers import AutoModelForSeq2SeqLM, AutoProcessor, T5ForConditionalGeneration, T5Tokenizer

print(f'{{"transformers": "{transformers.__version__}", "peft": "{peft.__version__}"}}', flush=True)
reader_check, package, *specs = sys.argv[1:]
if package:
    sys.path.insert(0, package)
    import t5fusion
for number, spec in enumerate(specs):
    print(f'{{"spec": {number}}}', flush=True)
    child = os.fork()
    if child == 0:
        sys.argv = [reader_check, spec]
        runpy.run_path(reader_check, run_name="__main__")
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        print('{"path": "the process", "passed": false, "detail": "ended early"}', flush=True)
"""

NOT_PUSHED = "not on a Hub yet"  # part of what an adapter names as its base model until its bundle is pushed
PIPELINE = "pipeline(model=...), called with texts and vectors"
FROM_CONFIG = ("AutoModel", "AutoModelForSeq2SeqLM", "PeftModel over AutoModelForSeq2SeqLM", PIPELINE)


@dataclass(frozen=True)
class KnownRefusal:
    """Loading paths that transformers or peft refuse from a place, up to a release, and what they say."""

    paths: tuple[str, ...]
    place: str
    says: str
    before: tuple[int, ...] = (999,)


KNOWN_REFUSALS = (
    # PEFT loads an adapter's base model by its name alone, and so not from the folder that the adapter lies in.
    KnownRefusal(("AutoPeftModelForSeq2SeqLM",), "folder", NOT_PUSHED),
    # The Auto classes of 5.0 do the same. Later ones take a folder with a config.json as its own base model.
    KnownRefusal(FROM_CONFIG, "folder", NOT_PUSHED, before=(5, 5)),
)


def install(venv: Path, *arguments: str) -> None:
    """Install packages, torch first: the others then use this build. It is named each time, so that pip keeps it."""
    pip = [venv / "bin" / "python", "-I", "-m", "pip", "install", "-qq", "--disable-pip-version-check", TORCH]
    if not (venv / "bin" / "python").exists():
        say(f"{venv.name}: creating {venv}")
        subprocess.run([sys.executable, "-m", "venv", venv], env=ENVIRONMENT, check=True)
        subprocess.run(pip, env=ENVIRONMENT, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    subprocess.run([*pip, *arguments], env=ENVIRONMENT, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)


@dataclass
class Run:
    """The results of one release of transformers with one of peft, for all models."""

    transformers: str
    peft: str
    counts: dict[tuple[str, str], Counter]  # by model and place: how many loading paths are right, refused, wrong
    sentences: dict[str, set[str]]  # by what was said: the loading paths that are not right

    def add(self, key: tuple[str, str], answer: dict) -> None:
        result = self._result(key[1], answer)
        self.counts.setdefault(key, Counter())[result] += 1
        if result == "right":
            self.counts[key]["bit for bit"] += answer["detail"] == "bit for bit"
        else:
            self.sentences.setdefault(f"{result}: {answer['detail']}", set()).add(answer["path"])

    def _result(self, place: str, answer: dict) -> str:
        if answer["passed"]:
            return "right"
        release = tuple(int(number) for number in self.transformers.split(".")[:2])
        known = (
            answer["path"] in refusal.paths and place.startswith(refusal.place) and refusal.says in answer["detail"]
            for refusal in KNOWN_REFUSALS
            if release < refusal.before
        )
        return "refused" if any(known) else "WRONG"

    def lines(self) -> Iterator[str]:
        """Yield a line for each model and place, then each sentence once."""
        for (model, place), count in self.counts.items():
            yield (
                f"transformers {self.transformers}, peft {self.peft}, {model}, {place}: {count['right']} right "
                f"({count['bit for bit']} bit for bit), {count['refused']} refused, {count['WRONG']} wrong"
            )
        for sentence, paths in self.sentences.items():
            yield f"  {sentence} [{', '.join(sorted(paths))}]"

    def row(self) -> str:
        total = sum(self.counts.values(), Counter())
        cells = (self.transformers, self.peft, total["right"], total["bit for bit"], total["refused"], total["WRONG"])
        return f"| {' | '.join(map(str, cells))} |"


def try_all(venv: Path, specs: list[Spec], work: Path, hub: HubServer) -> Run:
    """Try all loading paths of all models, from all places.

    It does so three times: with an empty cache; offline, with the cache that this left; offline, beside this package.
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
        command = [venv / "bin" / "python", "-I", "-c", TRY_ALL, READER_CHECK, package, *files]
        with subprocess.Popen(
            command, cwd=home, env=environment | {"OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=(home / "stderr").open("w"), text=True,
        ) as process:  # fmt: skip
            for line in process.stdout or ():
                answer = json.loads(line) if line.startswith("{") else {}
                if "transformers" in answer:
                    run.transformers, run.peft = answer["transformers"], answer["peft"]
                elif "spec" in answer:
                    model, place, _ = specs[answer["spec"]]
                elif "path" in answer:
                    run.add((model, place + offline), answer)
        if process.returncode:
            raise RuntimeError(f"{venv}: {(home / 'stderr').read_text()[-2000:]}")
    return run


def try_release(release: str, folder: Path, specs: list[Spec], work: Path, hub: HubServer) -> list[Run]:
    """Try a release with the newest peft and its dependencies, then with the oldest peft."""
    venv, runs = folder / release, []
    for peft in PEFT[release]:
        began = time.monotonic()
        if peft is None:
            install(venv, "--upgrade", "transformers", "peft")
        else:
            install(venv, *(["--no-deps"] if runs else [f"transformers=={release}"]), f"peft=={peft}")
        installed = time.monotonic()
        runs.append(try_all(venv, specs, work, hub))
        seconds = f"{installed - began:.0f} s to install, {time.monotonic() - installed:.0f} s to load"
        say(f"transformers {release}, peft {runs[-1].peft}: {seconds}")
    return runs


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--releases", nargs="+", choices=PEFT, default=list(PEFT), help="releases of transformers")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "matrix", help="of the virtual environments")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many releases run at the same time")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, HubServer(tokens={"hf_owner": "me"}) as hub:
        work = Path(temporary)
        os.environ.update(hub.environment(work / "author", "hf_owner"))
        from matrix_models import make_models  # after the line above: huggingface_hub reads its settings once

        specs = [(model.name, place, spec) for model in make_models(hub, work) for place, spec in model.specs()]
        say(f"{len(specs)} models and places")
        with ThreadPoolExecutor(options.jobs) as pool:
            release = partial(try_release, folder=folder, specs=specs, work=work, hub=hub)
            runs = [run for runs in pool.map(release, options.releases) for run in runs]
    print("\n".join(line for run in runs for line in run.lines()))
    print(f"\nLoading paths, {date.today()}, {TORCH}:\n")
    print("| transformers | peft | right | equal bit for bit | refused with a reason | wrong |")
    print("|---|---|---|---|---|---|")
    print("\n".join(run.row() for run in runs))
    return int(any(count["WRONG"] for run in runs for count in run.counts.values()))


if __name__ == "__main__":
    sys.exit(main())
