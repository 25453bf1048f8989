"""Charts of single samples: their most probable tokens by layer, the lens at every token, predictions against the truth.

As in `charts`, field names are fixed and texts are drawn as they are.
"""

from collections.abc import Sequence

import altair as alt
import polars as pl

from layercache.report import theme
from layercache.report.marks import chart, color, grid, or_else, tip, titled

TOKEN_WIDTH, TOKEN_LABEL, TOKEN_STEP = 110, 84, 16
"""Of a panel of top tokens, pixels: its bars, the tokens beside them, and the height of one."""
CELL_WIDTH, CELL_HEIGHT, CELL_LETTERS = 46, 17, 7
"""Of a cell of the lens grid: pixels, and the letters of a token shown in it."""
MAX_CLASSES = 12
"""Classes of a confusion matrix; of more the rarest are put together."""


def bars(frame: pl.DataFrame, title: str = "") -> alt.TopLevelMixin:
    """Draw the most probable tokens at several layers of one sample: a row for each model, a panel for each layer.

    Args:
        frame: model, layer, entropy (nats), rank (0 = most probable), token (white space visible), probability,
            role (`final`: the last layer's choice; `target`; `other`).
        title: above the figure.
    """
    rows = []
    for model in frame["model"].unique(maintain_order=True):
        own = frame.filter(model=model)
        panels = [_token_panel(part) for _, part in own.group_by("layer", maintain_order=True)]
        rows.append(alt.hconcat(*panels, spacing=10).properties(title=alt.Title(model, fontSize=12)))
    return titled(alt.vconcat(*rows), title)


def heat(frame: pl.DataFrame, title: str = "") -> alt.TopLevelMixin:
    """Draw the logit lens at every token of one sample: a panel a model, a row a layer, a column a token.

    A cell says the most probable next token, and is the darker the more probable that is.

    Args:
        frame: model, position, token, layer, top_token (white space visible), probability, entropy (nats).
        title: above the figure.
    """
    panels = []
    for model in frame["model"].unique(maintain_order=True):
        keyed = frame.filter(model=model).with_columns(
            key=pl.format("{}|{}", pl.col("position").cast(pl.String).str.zfill(6), "token"),
            short=pl.col("top_token").str.head(CELL_LETTERS),
        )
        base = chart(keyed, "key", "token", "layer", "top_token", "short", "probability", "entropy").encode(
            x=alt.X(
                "key:N",
                title="token, and what the lens expects after it",
                axis=alt.Axis(labelExpr="slice(datum.label, 7)", labelFont=theme.MONO, labelAngle=-40, labelLimit=90),
            ),
            y=alt.Y("layer:O", title="layer", sort="descending", axis=alt.Axis(ticks=False)),
        )
        shade = alt.FillOpacity("probability:Q", scale=alt.Scale(domain=[0, 1], range=[0.04, 0.75]), legend=None)
        tips = ["token:N", tip("layer", "layer", "d"), alt.Tooltip("top_token:N", title="most probable next")]
        tips += [tip("probability", "its probability", ".4f"), tip("entropy", "entropy, nats")]
        cells = base.mark_rect().encode(fillOpacity=shade, tooltip=tips)
        words = base.mark_text(fontSize=9, font=theme.MONO, clip=True).encode(text="short:N")
        heading = alt.Title(model, fontSize=12)
        size = {"width": alt.Step(CELL_WIDTH), "height": alt.Step(CELL_HEIGHT)}
        panels.append(alt.layer(cells, words).properties(title=heading, **size))
    return titled(alt.vconcat(*panels), title)


def scatter(frame: pl.DataFrame, models: Sequence[str], title: str = "") -> alt.TopLevelMixin:
    """Draw predictions of a number against its true value, out of fold, beside the line where they agree.

    Args:
        frame: panel, model, row, truth, predicted.
        models: their order gives the colours.
        title: above the figure.
    """
    least = min(or_else(frame["truth"].min(), 0.0), or_else(frame["predicted"].min(), 0.0))
    most = max(or_else(frame["truth"].max(), 1.0), or_else(frame["predicted"].max(), 1.0))
    scale = alt.Scale(domain=[least, most if most > least else least + 1], nice=True, zero=False)
    x = alt.X("truth:Q", title="true", scale=scale, axis=alt.Axis(grid=False))
    y = alt.Y("predicted:Q", title="predicted", scale=scale)
    ends = pl.DataFrame({"truth": [least, most], "predicted": [least, most]})
    drawn = []
    for panel in frame["panel"].unique(maintain_order=True):
        points = chart(frame.filter(panel=panel), "model", "row", "truth", "predicted")
        points = points.mark_circle(opacity=0.55, size=26).encode(
            x=x,
            y=y,
            color=color(models),
            tooltip=["model:N", "row:Q", "truth:Q", tip("predicted", "predicted")],
        )
        diagonal = chart(ends, "truth", "predicted").mark_line(style="baseline", strokeDash=[4, 4]).encode(x=x, y=y)
        drawn.append(alt.layer(diagonal, points).properties(title=panel, width=280, height=280))
    return grid(drawn, title, models, columns=3)


def confusion(frame: pl.DataFrame, title: str = "", note: str = "") -> alt.TopLevelMixin:
    """Draw which class was taken for which: a panel each, shaded by the share of the true class.

    Args:
        frame: panel, truth, predicted, n, share (of the true class, 0 to 1).
        title: above the figure.
        note: below the title.
    """
    classes = sorted({*frame["truth"], *frame["predicted"]})
    x = alt.X("predicted:N", title="predicted", sort=classes, scale=alt.Scale(domain=classes))
    side = max(34 * len(classes), 120)
    x = x.axis(labelAngle=-40 if 7 * max(map(len, classes)) > side / len(classes) else 0, labelLimit=90)
    y = alt.Y("truth:N", title="true", sort=classes, scale=alt.Scale(domain=classes)).axis(labelLimit=90)
    shade = alt.FillOpacity("share:Q", scale=alt.Scale(domain=[0, 1], range=[0.04, 0.75]), legend=None)
    drawn = []
    for panel in frame["panel"].unique(maintain_order=True):
        base = chart(frame.filter(panel=panel), "truth", "predicted", "n", "share").encode(x=x, y=y)
        tips = ["truth:N", "predicted:N", tip("n", "rows", ",d"), tip("share", "share of the true class", ".0%")]
        cells = base.mark_rect().encode(fillOpacity=shade, tooltip=tips)
        counts = base.mark_text(fontSize=10).encode(text=alt.Text("n:Q", format=",d"))
        drawn.append(alt.layer(cells, counts).properties(title=panel, width=side, height=side))
    return grid(drawn, title, columns=3 if side < 300 else 2, note=note)


def _token_panel(frame: pl.DataFrame) -> alt.LayerChart:
    """One layer's tokens, best first. A key keeps two tokens with the same text apart; the axis shows the text alone."""
    keyed = frame.with_columns(key=pl.format("{}|{}", pl.col("rank").cast(pl.String).str.zfill(4), "token"))
    roles = ["other", "final", "target"]
    bar = chart(keyed, "key", "token", "rank", "probability", "role").mark_bar(height={"band": 0.78})
    bar = bar.encode(
        x=alt.X(
            "probability:Q",
            title="probability",
            scale=alt.Scale(domain=[0, 1]),
            axis=alt.Axis(values=[0, 0.5, 1], format=".1~f"),
        ),
        y=alt.Y(
            "key:N",
            title=None,
            sort=None,
            axis=alt.Axis(
                labelExpr="slice(datum.label, 5)",
                labelFont=theme.MONO,
                labelLimit=TOKEN_LABEL,
                ticks=False,
                domain=False,
                minExtent=TOKEN_LABEL,
                maxExtent=TOKEN_LABEL,
            ),
        ),
        color=alt.Color("role:N", scale=alt.Scale(domain=roles), legend=None),
        tooltip=["token:N", tip("probability", "probability", ".4f"), tip("rank", "rank", "d")],
    )
    layer, entropy = keyed["layer"][0], keyed["entropy"][0]
    heading = alt.Title(f"layer {layer}", subtitle=f"entropy {entropy:.2f} nats", fontSize=11, subtitleFontSize=10)
    return bar.properties(title=heading, width=TOKEN_WIDTH, height=alt.Step(TOKEN_STEP))
