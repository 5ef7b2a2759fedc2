"""Charts as SVG: what they show, to the eye and to a screen reader."""

import xml.etree.ElementTree as ElementTree

import pytest

from t5fusion.common.chart_templates import DARK, LIGHT
from t5fusion.common.charts import Bar, Line, bar_chart, line_chart, ticks
from t5fusion.finetune.loss_curve import save_loss_curve

SVG = "{http://www.w3.org/2000/svg}"
LINES = [Line("training", [(1, 4.0), (2, 3.5)]), Line("held out", [(1, 3.9), (2, 3.7)])]


def texts(chart):
    return [element.text for element in chart.iter(f"{SVG}text")]


def parse(chart: str):
    return ElementTree.fromstring(chart)


def test_a_line_falls_as_its_values_do():
    chart = parse(line_chart("Loss", LINES, "epochs", "nats per token"))
    paths = [line.get("points").split() for line in chart.iter(f"{SVG}polyline")]
    (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in paths[0])
    assert x2 > x1 and y2 > y1  # SVG counts downwards
    (_, first), (_, last) = (map(float, point.split(",")) for point in paths[1])
    assert y1 < first < last < y2
    assert {"Loss", "epochs", "nats per token", "training", "held out", "3.500", "3.700"} <= set(texts(chart))


def test_labels_of_close_lines_do_not_overlap():
    close = [Line("training", [(1, 4.0), (2, 3.51)]), Line("held out", [(1, 3.9), (2, 3.5)])]
    chart = parse(line_chart("Loss", close, "epochs", "nats per token"))
    heights = [float(each.get("y")) for each in chart.iter(f"{SVG}text") if each.text in ("training", "held out")]
    assert abs(heights[0] - heights[1]) >= 34


@pytest.mark.parametrize("points", [[(1, 4.0)], [(0, 4.0)], [(0.01, 3.0), (0.02, 3.0)], [(1, 0.0), (2, 0.0)]])
def test_few_or_equal_points(points):
    chart = parse(line_chart("Loss", [Line("training", points), Line("held out", [])], "epochs", "nats"))
    numbers = [
        float(each) for line in chart.iter(f"{SVG}polyline") for each in line.get("points").replace(",", " ").split()
    ]
    assert len(numbers) == 2 * len(points) and all(0 <= number <= 680 for number in numbers)
    assert "held out" not in texts(chart)


def test_bars_are_as_long_as_their_values():
    bars = [Bar("untuned", 4.0), Bar("no <vector> & more", 3.0, "+1.000"), Bar("own", 2.0, stands_out=True)]
    chart = parse(bar_chart("Loss", bars, "nats per token"))
    lengths = [float(bar.get("width")) for bar in chart.iter(f"{SVG}rect")][1:]  # the first is the background
    assert lengths[1] == pytest.approx(lengths[0] * 3 / 4, abs=0.2) and lengths[2] == pytest.approx(
        lengths[0] / 2, abs=0.2
    )
    colours = [bar.get("fill") for bar in chart.iter(f"{SVG}rect")][1:]
    assert colours == ["var(--plain)", "var(--plain)", "var(--first)"]
    assert {"untuned", "no <vector> & more", "own", "4.000", "3.000"} <= set(texts(chart))
    assert [each.text for each in chart.iter(f"{SVG}tspan")] == ["+1.000"]


@pytest.mark.parametrize(
    "chart", [line_chart("A <b>", LINES, "epochs", "loss"), bar_chart("A <b>", [Bar("own", 2.0)], "loss")]
)
def test_for_every_reader(chart):
    """A screen reader gets title and description; every colour is one of those that change with the colour scheme."""
    svg = parse(chart)
    names = {element.get("id"): element.text for element in svg if element.get("id")}
    assert svg.get("role") == "img" and svg.get("aria-labelledby").split() == list(names) == ["title", "description"]
    assert names["title"] == "A <b>" and ("3.500" in names["description"] or "own 2.000" in names["description"])
    style = svg.find(f"{SVG}style").text
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    for name in LIGHT:
        assert f"--{name}: {LIGHT[name]}" in light and f"--{name}: {DARK[name]}" in dark
    used = [element.get(name) for element in svg.iter() for name in ("fill", "stroke") if element.get(name)]
    assert all(colour == "none" or colour.startswith("var(--") for colour in used) and len(used) >= 3


@pytest.mark.parametrize(
    ("low", "high"), [(3.52, 4.02), (0, 4.302), (0, 1), (2.5, 2.5), (0, 0), (1e-3, 3e-3), (7, 9000)]
)
def test_ticks_are_round_and_hold_the_values(low, high):
    marks = ticks(low, high)
    assert marks[0] <= low and marks[-1] >= high and 2 <= len(marks) <= 8
    assert all(len(f"{mark:g}".replace(".", "").strip("0")) <= 4 for mark in marks)


@pytest.mark.parametrize(
    "draw", [lambda: line_chart("Loss", [Line("a", [])], "x", "y"), lambda: bar_chart("Loss", [], "x")]
)
def test_nothing_to_draw(draw):
    with pytest.raises(ValueError, match="one"):
        draw()


def test_loss_curve_of_a_training(tmp_path):
    history = [{"loss": 4.0, "epoch": 1.0}, {"eval_loss": 3.9, "epoch": 1.0}, {"loss": float("nan"), "epoch": 2.0}]
    save_loss_curve(tmp_path, history)
    chart = parse((tmp_path / "loss.svg").read_text())
    assert {"training", "held out", f"Loss of {tmp_path.name}"} <= set(texts(chart))
    assert [len(line.get("points").split()) for line in chart.iter(f"{SVG}polyline")] == [1, 1]


def test_no_loss_curve_without_losses(tmp_path):
    save_loss_curve(tmp_path, [])
    assert not list(tmp_path.iterdir())
