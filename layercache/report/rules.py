"""The rules that pick a layer without labels, side by side."""

import re

import altair as alt
import polars as pl

from layercache.report.marks import tip, titled
from layercache.report.text import plain

SHOWN = 15
"""Rules shown, the best first; baselines come on top."""
_REFERENCES = ("middle layer", "last layer", "random layer")
_QUANTILE = re.compile(r"_q\d[\d.]*(?= |$)")


def chosen(picks: pl.DataFrame) -> pl.DataFrame:
    """Return the rules to draw, the best first; of variants of one number only the first.

    Args:
        picks: group (the rule), mean, worst, cases, the best first.
    """
    family = pl.Series("family", [_QUANTILE.sub("", str(name)) for name in picks["group"]], pl.String)
    first = picks.with_columns(family).unique("family", keep="first", maintain_order=True)
    known = pl.col("group").is_in(_REFERENCES)
    return pl.concat([first.filter(~known).head(SHOWN), first.filter(known)]).sort(
        "mean", "group", descending=[True, False]
    )


def caption(picks: pl.DataFrame) -> str:
    """Say what is drawn."""
    rules = len(chosen(picks)) - picks["group"].is_in(_REFERENCES).sum()
    ends = "the mean over cases (point) and the worst of them (the line's other end)"
    if not rules:
        return f"The middle, the last and a random layer: {ends}."
    many = f"The {rules} rules that pick best on average" if rules > 1 else "One rule"
    return f"{many}, beside the middle, the last and a random layer: {ends}. Of the same number's quantiles the best is drawn."


def chart(picks: pl.DataFrame) -> alt.TopLevelMixin:
    """Draw what the layers that rules pick gain, from the worst case to the mean."""
    drawn = chosen(picks)
    names = [plain(str(name)) for name in drawn["group"]]
    drawn = drawn.with_columns(pl.Series("rule", names, pl.String), panel=pl.lit(""))
    base = alt.Chart(drawn.select("panel", "rule", "mean", "worst", "cases"))
    y = alt.Y("rule:N", title=None, sort=names, axis=alt.Axis(labelLimit=320, ticks=False))
    scale = alt.Scale(zero=True, nice=True)
    x = alt.X("worst:Q", title="gain over the baseline (share of the best layer's)", scale=scale)
    tips = ["rule:N", tip("mean", "mean"), tip("worst", "worst"), tip("cases", "cases", ",d")]
    lines = base.mark_rule(strokeWidth=2, opacity=0.6).encode(x=x, x2="mean:Q", y=y)
    points = base.mark_point(filled=True, size=70, opacity=1).encode(x=alt.X("mean:Q", scale=scale), y=y, tooltip=tips)
    return titled(alt.layer(lines, points).properties(width=460, height=alt.Step(20)), "Picking a layer without labels")
