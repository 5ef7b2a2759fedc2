"""What `evaluate` and the demo print as tables."""

import re
from types import SimpleNamespace

from rich.console import Console

from t5fusion import T5WithFusion
from t5fusion.cli.evaluate import _print_measures
from t5fusion.demo.demo import _parameters_of_base, _show_examples

MEASURES = {"rows": 4, "loss": 1.25, "rouge1": 0.5, "rougeL": 0.25, "chrf": 0.125}


def test_evaluate_prints_each_measure_once_and_by_one_name(capsys):
    _print_measures({"true": MEASURES, "none": MEASURES | {"loss": 2.0}}, {}, 1.5)
    rows = [re.findall(r"[\w.-]+", line) for line in capsys.readouterr().out.splitlines()]
    assert [row for row in rows if row][1:] == [
        ["rows", "4", "4"],
        ["loss", "1.2500", "2.0000"],
        ["ROUGE-1", "0.5000", "0.5000"],
        ["ROUGE-L", "0.2500", "0.2500"],
        ["chrF", "0.1250", "0.1250"],
        ["eval_loss", "by", "batches", "as", "in", "training", "1.5000"],
    ]


def test_the_loss_of_the_training_has_a_column_of_its_own_if_other_vectors_are_measured(capsys):
    _print_measures({"none": MEASURES}, {}, 1.5)
    out = capsys.readouterr().out
    assert "no vectors" in out and "own vectors" in out and out.count("1.5000") == 1


def test_the_demo_shows_whole_names_in_80_columns():
    name = "concurrent.futures.process.BrokenProcessPoolExecutor"
    texts = {kind: [f"{kind} {'word ' * 30}end"] for kind in ("untuned", "true", "none")}
    console = Console(width=80, record=True, file=SimpleNamespace(write=lambda text: None, flush=lambda: None))
    _show_examples(console, [name], ["Return it."], texts)
    text = console.export_text()
    assert name in text and "…" not in text and text.count("end") == 3
    assert max(map(len, text.splitlines())) <= 80


def test_the_demo_counts_the_parameters_that_the_readme_counts():
    assert _parameters_of_base(T5WithFusion("tiny_t5_v2")) == "6.5 M"
