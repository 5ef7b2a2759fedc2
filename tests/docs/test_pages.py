"""The pages: their links lead somewhere, their commands exist, and the lines that can run here run as printed."""

import importlib
import inspect
import re
import shlex
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
import typer.main
from forks import Forks

from t5fusion import T5FusionProcessor, T5WithFusion
from t5fusion.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("tiny_t5*/README.md")], key=lambda page: page.as_posix()
)
PAGES.remove(ROOT / "model_card.md")  # a template
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]+)\)")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PUBLIC = ("t5fusion", "t5fusion.finetune", "t5fusion.hub_export")


def read(page):
    return page.read_text(encoding="utf-8")


def anchors(page):
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", read(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for link in LINK.findall(FENCE.sub("", read(page))):
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_front_page_is_short():
    assert len(read(ROOT / "README.md").splitlines()) <= 130


def test_the_french_page_is_linked_from_the_first_screen():
    assert "docs/fr.md" in "\n".join(read(ROOT / "README.md").splitlines()[:15])


def test_the_picture_of_the_architecture_has_every_room():
    rooms = {file.stem.removesuffix("_t5fusion") for file in ROOT.glob("*_t5fusion.py")}
    rooms |= {file.parent.name for file in ROOT.glob("*/__init__.py")} - {"tiny_t5", "tiny_t5_v2"}
    drawn = re.findall(r'font-weight="600">(\w+)<', read(ROOT / "docs/images/storeys.svg"))
    assert set(drawn) == rooms


def test_the_page_on_security_lists_every_file_that_travels():
    travelling = {file.name for file in ROOT.glob("*_t5fusion.py")}
    assert set(re.findall(r"`(\w+_t5fusion\.py)`", read(ROOT / "SECURITY.md"))) == travelling


def public_objects():
    """(name, object) of each public name, and of the public methods and properties that this package gives it."""
    for module_name in PUBLIC:
        module = importlib.import_module(module_name)
        yield module_name, module
        for name in module.__all__:
            value = getattr(module, name)
            yield f"{module_name}.{name}", value
            for member in vars(value).values() if inspect.isclass(value) else ():
                function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
                if inspect.isfunction(function) and not function.__name__.startswith("_"):
                    yield f"{module_name}.{name}.{function.__name__}", getattr(value, function.__name__)


def test_every_public_name_has_a_docstring():
    names = dict(public_objects())
    assert len(names) > 40
    assert [name for name, value in names.items() if not inspect.getdoc(value)] == []


def test_the_reference_has_every_public_name():
    page = read(ROOT / "docs/api.md")
    for module_name in PUBLIC:
        for name in importlib.import_module(module_name).__all__:
            assert re.search(rf"(\.|[\[ ]){name}\b", page), f"{module_name}.{name}"


def commands(page):
    """The command lines of a page that call t5fusion, as lists of words after that name."""
    for language, block in FENCE.findall(read(page)):
        for line in block.splitlines() if language in ("console", "text") else ():
            line = line.removeprefix("$ ").partition(" #")[0]
            if line.startswith(("t5fusion ", "accelerate launch ")):
                words = shlex.split(line)
                yield words[words.index("t5fusion") + 1 :]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_have_the_options_that_pages_use(page):
    group = typer.main.get_command(app)
    for name, *words in commands(page):
        parameters = {option for parameter in group.commands[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= parameters, [name, *words]


def test_only_the_direction_from_the_mean_is_read():
    """As docs/own_vectors.md says: after `fit_fusion`, a vector twice as far from the mean gives the same token."""
    vectors = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)) + 3
    words = ("red", "green", "blue", "black")
    processor = T5FusionProcessor("tiny_t5", lexical_encoder=None, lexical_source="given", lexical_dim=5)
    names = [words[number] for number in vectors[:, :4].argmax(1)]
    model = T5WithFusion("tiny_t5", lexical_dim=5, dtype=torch.float32)
    assert model.fit_fusion(processor.rows(["name"] * 40, names, lexical_embeds=vectors)) > 0
    mean, step = vectors.mean(0), torch.randn(5, generator=torch.Generator().manual_seed(1))
    near, far, other = model.encoder.fusion(torch.stack([mean + step, mean + 2 * step, mean - step]))
    torch.testing.assert_close(near, far, rtol=1e-3, atol=1e-3)
    assert (near - other).abs().max() > 0.1


ANSWERS = {"own_vectors": {"['red']\n", "['blue']\n"}}  # what blocks of a page print


@pytest.mark.slow
@pytest.mark.parametrize("page", ["own_vectors", "data", "quickstart"])
def test_the_page_runs_as_printed(page, tmp_path):
    """Its blocks, in order, in one folder. Blocks of a different kind than "console" and "python" are not run."""
    forks, printed = Forks(tmp_path), []
    for language, block in FENCE.findall(read(ROOT / "docs" / f"{page}.md")):
        runs = [{"code": block}] if language == "python" else []
        for line in block.splitlines() if language == "console" else ():
            name, *words = shlex.split(line.removeprefix("$ "))
            assert name in ("t5fusion", "git", "pip")
            runs += [{"words": words}] if name == "t5fusion" else []
        for run in runs:
            status, out, err = forks.run(*run.pop("words", ()), **run)
            assert status == 0, f"{block}\n{out}\n{err}"
            printed.append(out)
    assert len(printed) >= 4 and ANSWERS.get(page, set()) <= set(printed)
