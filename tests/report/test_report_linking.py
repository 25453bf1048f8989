"""Charts that act as one, frames that are held once, and the numbers they are said with."""

import json
import math
from typing import Any

import altair as alt
import polars as pl
import pytest
import vl_convert

from layercache.report import charts, embed, linking, theme
from layercache.report.embed import Embedded
from layercache.report.measures import measure


def curves(models: list[str]) -> alt.TopLevelMixin:
    frame = pl.DataFrame(
        [
            {
                "panel": "mean@prompt",
                "model": model,
                "layer": layer,
                "layer_name": f"block {layer}",
                "value": layer / 10,
            }
            for model in models
            for layer in range(9)
        ]
    ).with_columns(low=pl.col("value") - 0.1, high=pl.col("value") + 0.1, n=pl.lit(7))
    none = frame.head(0).with_columns(baseline=pl.lit(None, pl.String))
    return charts.curves(frame, none, charts.look(models, frame, measure("accuracy")), "A title")


def with_rows(held: Embedded, number: int, **signals: Any) -> str:
    """Return a chart that a page holds as SVG, its parameters set."""
    spec = json.loads(json.dumps(held.specs[number]))
    for one in spec["params"]:
        one["value"] = signals.get(one["name"], one["value"])
    spec["datasets"] = {
        name: [
            dict(zip(one["columns"], row, strict=True))
            for row in zip(*map(values, one["columns"].values()), strict=True)
        ]
        for name, one in held.data.items()
    }
    return str(vl_convert.vegalite_to_svg({**spec, "config": theme.FILE}))


def values(column: Any) -> list[Any]:
    if isinstance(column, list):
        return column
    if "of" in column:
        return [column["of"][place] for place in column["at"]]
    runs = column["runs"]
    return [one for at in range(0, len(runs), 2) for one in [runs[at]] * runs[at + 1]]


def test_hidden_models_are_not_drawn_and_keep_their_colours() -> None:
    held = Embedded(["a", "b"])
    held.chart(curves(["a", "b"]), "both")
    both, one = with_rows(held, 0), with_rows(held, 0, hidden=["a"])
    assert both.count('aria-roledescription="point"') == 2 * one.count('aria-roledescription="point"') > 0
    drawn = one[one.index('aria-roledescription="line mark"') - 400 :]
    assert theme.PALETTE[1] in drawn


def test_a_model_has_one_colour_on_the_whole_page() -> None:
    held = Embedded(["a", "b", "c"])
    held.chart(curves(["b", "c"]), "two of three")
    encodings = json.dumps(held.specs[0])
    assert '"domain": ["a", "b", "c"]' in encodings
    assert '"values": ["b", "c"]' in encodings
    many = [f"m{number}" for number in range(len(theme.PALETTE) + 1)]
    held = Embedded(many)
    held.chart(curves(["m5", "m6"]), "two of too many")
    assert '"domain": ["m5", "m6"]' in json.dumps(held.specs[0])


def test_layers_outside_the_brush_are_veiled() -> None:
    held = Embedded(["a"])
    held.chart(curves(["a"]), "one")
    assert held.specs[0]["concat"][0]["name"].startswith(linking.BRUSHED)
    plain, brushed = with_rows(held, 0), with_rows(held, 0, brushed=[2, 4])
    assert brushed.count('opacity="0.78"') == plain.count('opacity="0.78"') + 2
    assert brushed.count('fill="#ffffff" opacity="0.78"') == 2, "the veil has the colour of the paper"
    whole = with_rows(held, 0, brushed=[0, 8])
    assert whole.count('opacity="0.78"') == plain.count('opacity="0.78"'), "nothing lies outside"


def test_frames_and_numbers_are_held_once() -> None:
    held = Embedded(["a"])
    first = held.chart(curves(["a"]), "one")
    size = len(held.data)
    assert held.chart(curves(["a"]), "again") == (1, first[1])
    assert len(held.data) == size == 1
    assert held.rows(first[1]) == 9


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([1 / 3, 2 / 3], [0.33333, 0.66667]),
        ([1234567.89, 4.0], [1234568, 4]),
        ([math.nan, math.inf, None], {"runs": [None, 3]}),
        ([5, 5, 5, 5], {"runs": [5, 4]}),
        (["b", "a", "b", "a"], {"of": ["b", "a"], "at": [0, 1, 0, 1]}),
        (["x\u202ey", "b"], ["x⟨U+202E⟩y", "b"]),
        ([123456789, 7], [123456789, 7]),
    ],
)
def test_a_column_is_said_briefly(given: list[Any], kept: Any) -> None:
    held = Embedded()
    column = held.data[held.frame(pl.DataFrame({"it": pl.Series(given, strict=False)}))]["columns"]["it"]
    # Three of a kind are not fewer than a third of three: said whole.
    assert values(column) == values(kept)
    if len(given) > 3:
        assert column == kept


def test_names_of_files_are_tame() -> None:
    from layercache.report.page import slug

    assert slug("../../etc/passwd <b>R²</b>") == "etc-passwd-b-r-b"
    assert slug("\u202e") == "chart"
    assert len(slug("long " * 99)) <= 60
    assert embed.DIGITS == 5
