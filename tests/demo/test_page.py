"""The page and the picture that the demo saves."""

import re
from base64 import b64decode
from html.parser import HTMLParser

import pytest

from t5fusion.demo.page import Example, save_page

LOSSES = {"untuned": 4.302, "true": 3.73, "shuffled": 4.031, "none": 3.879}
WORTH = {"difference": 0.302, "low": 0.281, "high": 0.322}
EXAMPLES = [Example("clear", "Remove <all> items & more.", "a city", "Remove it.", "Add it.", "append")] * 5
FACTS = {"rows": 7164, "held_out_rows": 775, "parameters": "6.5 M", "source": "the code beneath that name"}


class Page(HTMLParser):
    """The words of a page, and the attributes of its elements."""

    def __init__(self, text):
        super().__init__()
        self.words, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.attributes += attributes

    def handle_data(self, data):
        self.words += data.split()


@pytest.fixture
def saved(tmp_path):
    file = save_page(tmp_path, LOSSES, WORTH, EXAMPLES, **FACTS)
    assert file == tmp_path / "demo.html"
    return file.read_text(encoding="utf-8"), (tmp_path / "demo.svg").read_text(encoding="utf-8")


def test_a_page_needs_no_network(saved):
    text, picture = saved
    page = Page(text)
    addresses = [value for name, value in page.attributes if name in ("src", "href")]
    assert len(addresses) == 1 and addresses[0].startswith("data:image/svg+xml;base64,")
    assert b64decode(addresses[0].partition(",")[2]).decode() == picture
    assert "//" not in text.replace(addresses[0], "") and "url(" not in text and "@import" not in text


def test_what_the_page_says(saved):
    words = " ".join(Page(saved[0]).words)
    for sentence in (
        "A T5 of 6.5 M parameters learned to describe Python code, on 7,164 names of the standard library.",
        "Its vector is an embedding of the code beneath that name. The model was measured on 775 names",
        "vector costs +0.302 nats per token",
        "The 95 % confidence interval is +0.281 to +0.322: the model reads its vectors.",
        "clear Remove <all> items & more. untuned a city tuned Remove it. tuned, with the vector of append Add it.",
    ):
        assert sentence in words
    assert len(re.findall("<article>", saved[0])) == 5


def test_the_picture(saved):
    for words in ("4.302", "4.031", "3.879", "3.730", "+0.301", "+0.149", "+0.572", "loss on 775 held-out rows"):
        assert words in saved[1]


def test_a_cost_that_may_be_nothing_proves_nothing(tmp_path):
    file = save_page(tmp_path, LOSSES, WORTH | {"low": -0.01}, EXAMPLES, **FACTS)
    assert "reads its vectors" not in file.read_text(encoding="utf-8")
