"""Charts from frames: they render without a warning, draw what the frame says, and parse nobody's names."""

import itertools
import math
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest
import vl_convert

from layercache.report import charts, embed, sample_charts, theme
from layercache.report.marks import ticks
from layercache.report.measures import MEASURES, headline, measure

HOSTILE = ("a\"b].[c\\d.e'f", "m[0].x", "<script>alert(1)</script>")
SVG = "{http://www.w3.org/2000/svg}"
Render = Callable[[Any], ET.Element]


@pytest.fixture
def render(capfd: pytest.CaptureFixture[str]) -> Render:
    """Render a chart to SVG; nothing may be said about it on stderr."""

    def draw(chart: Any) -> ET.Element:
        capfd.readouterr()
        svg = vl_convert.vegalite_to_svg(embed.alone(chart))
        said = capfd.readouterr()
        assert (said.out, said.err) == ("", "")
        return ET.fromstring(svg)

    return draw


def texts(svg: ET.Element) -> list[str]:
    return [element.text or "" for element in svg.iter(f"{SVG}text")]


def strokes(svg: ET.Element) -> set[str]:
    return {element.get("stroke", "") for element in svg.iter()}


def points(models: tuple[str, ...], layers: range, panels: tuple[str, ...] = ("mean@prompt",)) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {
                "panel": panel,
                "model": model,
                "layer": layer,
                "layer_name": f"blocks.{layer}",
                "value": 0.5 + 0.01 * layer,
                "low": 0.45,
                "high": 0.9,
                "n": 100,
            }
            for panel, model, layer in itertools.product(panels, models, layers)
        ]
    )


def baselines(*names: str, layer: int | None = None) -> pl.DataFrame:
    row = {"panel": None, "model": "m", "layer": layer, "value": 0.3, "low": 0.2, "high": 0.4, "n": 100}
    schema = {"panel": pl.String, "layer": pl.Int64, "baseline": pl.String}
    frame = pl.DataFrame([{**row, "baseline": name} for name in names], schema_overrides=schema)
    return frame if names else points(("m",), range(1)).head(0).with_columns(baseline=pl.lit(""))


def draw_curves(frame: pl.DataFrame, below: pl.DataFrame, metric: str = "balanced_accuracy") -> Any:
    models = frame["model"].unique().sort().to_list()
    return charts.curves(frame, below, charts.look(models, frame, measure(metric)), "certificate")


def test_models_are_told_apart_by_colour_and_named(render: Render) -> None:
    frame = points(("one", "two"), range(8), ("last@prompt", "mean@prompt"))
    svg = render(draw_curves(frame, baselines("tf-idf", "majority class")))
    assert {"one", "two", "tf-idf", "majority class", "last@prompt", "mean@prompt", "certificate"} <= set(texts(svg))
    assert {theme.PALETTE[0], theme.PALETTE[1]} <= strokes(svg)
    assert theme.PALETTE[2] not in strokes(svg)
    dashes = {element.get("stroke-dasharray") for element in svg.iter()}
    assert {"6,3", "2,2"} <= dashes


@pytest.mark.parametrize(
    ("last", "shown"), [(7, list(range(8))), (32, list(range(0, 33, 4))), (80, list(range(0, 81, 8)))]
)
def test_layers_stay_legible(last: int, shown: list[int], render: Render) -> None:
    assert ticks(range(last + 1)) == shown
    svg = render(draw_curves(points(("one",), range(last + 1)), baselines()))
    assert [str(layer) for layer in shown] == [text for text in texts(svg) if text.isdecimal()]


def test_a_few_layers_far_apart_keep_their_numbers() -> None:
    assert ticks([5]) == [5]
    assert ticks([17]) == [17]
    assert set(ticks([0, 16, 32])) >= {0, 16, 32}


def test_one_layer_without_intervals_is_points(render: Render) -> None:
    frame = points(("one", "two"), range(3, 4)).with_columns(
        low=pl.lit(None, pl.Float64), high=pl.lit(None, pl.Float64)
    )
    svg = render(draw_curves(frame, baselines("shuffled labels", layer=3)))
    assert "3" in texts(svg)
    with_intervals = render(draw_curves(points(("one",), range(3, 4)), baselines()))
    assert len(list(with_intervals.iter())) > 0


def test_missing_and_undefined_values_leave_gaps(render: Render) -> None:
    frame = points(("one",), range(5)).with_columns(
        value=pl.Series([0.1, float("nan"), None, 0.3, 0.2]), low=pl.Series([None, 0.1, 0.1, 0.2, 0.1])
    )
    render(draw_curves(frame, baselines()))


@pytest.mark.parametrize(
    ("metric", "values", "domain", "cut"),
    [
        ("balanced_accuracy", [0.4, 0.6], (0, 1), False),
        ("r2", [0.1, 0.6], (0, 1), False),
        ("r2", [-0.2, 0.6], (-0.21, 1), False),
        ("r2", [-80.0, 0.6], (-0.5, 1), True),
        ("mse", [2.0, 4.0], (0, 4.2), False),
        ("target_logprob", [-9.0, -1.0], (-9.45, 0), False),
        ("spearman", [-0.1, 0.2], (-1, 1), False),
        ("kl_to_final", [0.0, 0.0], (0, 1), False),
        ("a_new_metric", [3.0, 5.0], (0, 5.25), False),
    ],
)
def test_the_axis_fits_the_measure(metric: str, values: list[float], domain: tuple[float, float], cut: bool) -> None:
    frame = points(("one",), range(2)).with_columns(value=pl.Series(values), low=None, high=None)
    look = charts.look(["one"], frame, measure(metric))
    assert look.domain == pytest.approx(domain)
    assert look.cut is cut


def test_bands_lie_under_their_line(render: Render) -> None:
    frame = points(("one", "two"), range(8))
    bands = pl.DataFrame(
        [
            {"panel": "mean@prompt", "model": model, "layer": layer, "band": band, "low": 0.5 - w, "high": 0.5 + w}
            for model, (band, w), layer in itertools.product(
                ("one", "two"), (("10–90 %", 0.3), ("25–75 %", 0.1)), range(8)
            )
        ]
    )
    style = charts.look(["one", "two"], frame, measure("entropy"))
    svg = render(charts.spread(frame, bands, style, "Lens entropy"))
    areas = [
        element
        for element in svg.iter(f"{SVG}path")
        if element.get("fill") in theme.PALETTE[:2] and element.get("opacity") == "0.2"
    ]
    assert len(areas) == 4
    single = points(("one",), range(1))
    render(charts.spread(single, bands.filter(layer=0, model="one"), charts.look(["one"], single, measure("entropy"))))


def test_depths_are_bars_side_by_side(render: Render) -> None:
    frame = pl.DataFrame(
        {
            "panel": ["p"] * 4,
            "model": ["one", "one", "two", "two"],
            "layer": [0, 2, 1, 2],
            "share": [0.25, 0.75, 0.5, 0.5],
            "n": [1, 3, 2, 2],
        }
    )
    svg = render(charts.shares(frame, ["one", "two"], [0, 1, 2, 3], "Depth"))
    bars = [element for element in svg.iter(f"{SVG}path") if "share of samples" in element.get("aria-label", "")]
    assert len(bars) == 4
    assert "3" in texts(svg), "a layer at which nothing settles is still there"


def token_rows(tokens: list[str], roles: list[str], layers: tuple[int, ...] = (0, 3)) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {
                "model": "one",
                "layer": layer,
                "entropy": 1.5,
                "rank": rank,
                "token": token,
                "probability": 0.5 / (rank + 1),
                "role": role,
            }
            for layer in layers
            for rank, (token, role) in enumerate(zip(tokens, roles, strict=True))
        ]
    )


def test_tokens_keep_their_order_and_doubles(render: Render) -> None:
    svg = render(sample_charts.bars(token_rows(["␣U", "x", "x", "a|b"], ["final", "other", "target", "other"])))
    shown = [text for text in texts(svg) if text in {"␣U", "x", "a|b"}]
    assert shown == ["␣U", "x", "x", "a|b"] * 2
    bars = [element for element in svg.iter(f"{SVG}path") if element.get("aria-roledescription") == "bar"]
    assert [bar.get("fill") for bar in bars[:4]] == [
        theme.PALETTE[1],
        theme.PALETTE[0],
        theme.PALETTE[2],
        theme.PALETTE[0],
    ]


def test_bars_are_as_long_as_probabilities(render: Render) -> None:
    frame = token_rows(["a", "b"], ["other", "other"], (0,)).with_columns(probability=pl.Series([math.exp(-0.5), 0.25]))
    svg = render(sample_charts.bars(frame))
    widths = [
        float(element.get("d", "").split("h")[1].split("v")[0])
        for element in svg.iter(f"{SVG}path")
        if element.get("aria-roledescription") == "bar"
    ]
    assert widths == pytest.approx(
        [sample_charts.TOKEN_WIDTH * math.exp(-0.5), sample_charts.TOKEN_WIDTH * 0.25], abs=1e-3
    )


def test_a_heat_map_is_the_darker_the_more_probable(render: Render) -> None:
    frame = pl.DataFrame(
        {
            "model": ["one"] * 4,
            "position": [9, 10, 9, 10],
            "token": ["␣the", "␣the"] * 2,
            "layer": [0, 0, 1, 1],
            "top_token": ["a|b", "<b>", "c", "unbelievable"],
            "probability": [0.0, 0.5, 0.5, 1.0],
            "entropy": [2.0, 1.0, 1.0, 0.0],
        }
    )
    svg = render(sample_charts.heat(frame, "Logit lens"))
    cells = [e for e in svg.iter(f"{SVG}path") if e.get("aria-roledescription") == "rect mark"]
    shades = {e.get("aria-label", "").split("top_token")[-1]: float(e.get("fill-opacity", "nan")) for e in cells}
    assert sorted(shades.values()) == pytest.approx([0.04, 0.395, 0.395, 0.75], abs=1e-3)
    assert [text for text in texts(svg) if text in {"a|b", "<b>", "c", "unbelie"}] == ["a|b", "<b>", "c", "unbelie"]
    assert texts(svg).count("␣the") == 2, "two tokens with one text are two columns"


def test_predictions_are_drawn_against_the_truth(render: Render) -> None:
    numbers = pl.DataFrame(
        {
            "panel": ["p"] * 3,
            "model": ["one"] * 3,
            "row": [0, 1, 2],
            "truth": [1.0, 2.0, 2.0],
            "predicted": [1.5, 2.0, 2.5],
        }
    )
    svg = render(sample_charts.scatter(numbers, ["one"], "rating"))
    assert len([e for e in svg.iter(f"{SVG}path") if e.get("aria-roledescription") == "circle"]) == 3
    same = numbers.with_columns(truth=pl.lit(2.0), predicted=pl.lit(2.0))
    render(sample_charts.scatter(same, ["one"]))
    counts = pl.DataFrame(
        {"panel": ["p"] * 2, "truth": ["U", "PG"], "predicted": ["U", "U"], "n": [1200, 3], "share": [1.0, 1.0]}
    )
    assert {"1,200", "3", "U", "PG"} <= set(texts(render(sample_charts.confusion(counts, "certificate"))))


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_drawn_and_never_parsed(name: str, render: Render) -> None:
    frame = points((name, "other"), range(3), (name, "mean@prompt"))
    assert set(texts(render(draw_curves(frame, baselines(name))))) >= {name, "other"}
    svg = render(sample_charts.bars(token_rows([name, "b"], ["final", "other"]), name))
    assert name in texts(svg)
    counts = pl.DataFrame({"panel": [name], "truth": [name], "predicted": ["U"], "n": [1], "share": [1.0]})
    render(sample_charts.confusion(counts, name))
    depths = pl.DataFrame({"panel": [name], "model": [name], "layer": [0], "share": [1.0], "n": [1]})
    render(charts.shares(depths, [name], [0], name))


def test_more_models_than_colours_still_draw(render: Render) -> None:
    render(draw_curves(points(tuple(f"m{n}" for n in range(9)), range(3)), baselines()))


def test_the_palette_survives_colour_blindness() -> None:
    assert len(set(theme.PALETTE)) == len(theme.SHAPES) == 6
    okabe_ito = {"#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#000000"}
    assert set(theme.PALETTE) < okabe_ito


def test_page_and_file_themes_have_the_same_roles() -> None:
    def shape(value: Any) -> Any:
        return {key: shape(inner) for key, inner in value.items()} if isinstance(value, dict) else type(value)

    assert shape(theme.PAGE) == shape(theme.FILE)


def test_every_measure_has_a_unit_or_scale() -> None:
    assert all(one.axis and one.name for one in MEASURES.values())
    assert headline({"mse", "r2", "spearman"}) == "r2"
    assert headline({"accuracy", "balanced_accuracy", "auc"}) == "balanced_accuracy"
    assert headline({"zeta", "eta"}) == "eta"
