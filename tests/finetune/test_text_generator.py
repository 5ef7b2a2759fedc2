"""`TextGenerator`: the texts of `generate_file` for rows in memory."""

import json

import pytest
from datasets import Dataset

from t5fusion import T5WithFusion
from t5fusion.finetune import Columns, TextGenerator, generate_file

COLUMNS = Columns("name", vector="vector")


@pytest.fixture(scope="module")
def model(base, processor, tmp_path_factory):
    """The folder of an untuned model for given vectors of eight numbers."""
    folder = tmp_path_factory.mktemp("generator") / "model"
    T5WithFusion(str(base), lexical_dim=8).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def rows():
    """Rows with a name and a vector, the second one without a name."""
    names = ["app", None, "app_settings"]
    return [{"name": name, "vector": [0.1 * row] * 8, "other": row} for row, name in enumerate(names, 1)]


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "temperature": 2.0}])
def test_its_texts_are_those_of_generate_file(model, rows, settings, tmp_path):
    options = {"max_new_tokens": 5, "settings": settings, "engine": "fp32"}
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    generate_file(model, data, COLUMNS, tmp_path / "out.jsonl", **options)
    written = [json.loads(line)["output"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    texts = TextGenerator(model, COLUMNS, **options)(Dataset.from_list(rows))
    assert texts == written and texts[1] is None and None not in texts[::2]


def test_a_missing_column_is_named(model, rows):
    generator = TextGenerator(model, Columns("title", vector="vector"))
    with pytest.raises(ValueError, match="there is no column 'title'; the columns are name, vector, other"):
        generator(Dataset.from_list(rows))
