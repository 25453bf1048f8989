"""One HTML file that needs nothing else: text, tables, chart specifications and the JavaScript that draws them.

The page's content-security policy lets it run exactly its own two scripts (named by their hashes), fetch nothing and
evaluate no text as code. Whatever a prompt or a label holds is text.
"""

import base64
import functools
import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl
import vl_convert

from layercache import __version__
from layercache.report import embed, marks, theme
from layercache.report.embed import Embedded
from layercache.report.text import count, escape, number, script_json

_HERE = Path(__file__).parent
_SCRIPTS = ("tables.js", "fit.js", "charts.js", "page.js")
"""Make one script, in this order."""
MAX_TABLE_ROWS = 2000
"""Rows shown of a table; a line below says how many are left out."""
_BRIEF = 24
"""Letters of a cell that is not broken into lines."""
_CODE = re.compile(r"`([^`]*)`")
_SLUG = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class Figure:
    """A chart, what it shows in words, and where it is folded away the line to open it by."""

    chart: alt.TopLevelMixin
    caption: str
    summary: str | None = None


@dataclass(frozen=True)
class Numbers:
    """A frame that a line opens as a table, with a download as CSV; the page's script makes the table."""

    frame: pl.DataFrame
    summary: str


Part = str | Figure | Numbers


@dataclass(frozen=True)
class Section:
    """A part of the page: an anchor, a heading, HTML, figures and numbers in order, and the commands that make it again.

    A section may have a script and a style of its own; the script finds `data` as JSON in the element `<anchor>-data`.
    """

    anchor: str
    heading: str
    parts: Sequence[Part]
    data: dict[str, Any] | None = None
    script: str = ""
    style: str = ""
    commands: Sequence[str] = ()

    @property
    def embedded(self) -> str:
        """The element with the data."""
        data = "" if self.data is None else script_json(self.data)
        return f'<script type="application/json" id="{self.anchor}-data">{data}</script>\n' if data else ""


def render(title: str, sections: Sequence[Section], models: Sequence[str] = ()) -> str:
    """Return the page.

    Args:
        title: plain text.
        sections: their strings are HTML already; use `paragraph`, `table` and the like to make it.
        models: every model that charts name, plain; they can be hidden, and have the same colour everywhere.
    """
    held = Embedded(models)
    body = "\n".join(_section(section, held) for section in sections)
    links = "".join(f'<li><a href="#{section.anchor}">{escape(section.heading)}</a></li>' for section in sections)
    style = "".join([_asset("page.css"), *(section.style for section in sections)])
    code = "".join([*map(_asset, _SCRIPTS), *(_apart(section.script) for section in sections)])
    bundle = _bundle()
    # Vega sets style attributes, so they are allowed; style elements other than the page's own are not. `style-src` is
    # for browsers that do not know the two finer directives.
    policy = (
        f"default-src 'none'; script-src {_hash(bundle)} {_hash(code)}; style-src 'unsafe-inline'; "
        f"style-src-elem {_hash(style)}; style-src-attr 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="layercache {__version__}">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#main">To the results</a>
<header>
<h1>{escape(title)}</h1>
<p class="faint">Made by layercache {__version__} on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.</p>
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<noscript><p>Charts and the tables behind them need JavaScript, which this page runs from within itself alone.</p></noscript>
{_controls(models) if held.specs else ""}
<main id="main">
{body}
</main>
<footer class="faint">Charts are drawn by Vega, Vega-Lite and Vega-Embed (BSD-3-Clause), which are part of this file.</footer>
<script type="application/json" id="page-data">{script_json(_content(held))}</script>
{"".join(section.embedded for section in sections)}<script>{bundle}</script>
<script>{code}</script>
</body>
</html>
"""


def _apart(script: str) -> str:
    """Put a script into a block of its own, where its names meet no others."""
    return f"{{\n{script}\n}}\n" if script else ""


def _content(held: Embedded) -> dict[str, Any]:
    """Return what the page's script works on."""
    configs = {"page": theme.PAGE, "file": theme.FILE}
    return {"specs": held.specs, "data": held.data, "configs": configs, "titles": embed.TITLES}


def _controls(models: Sequence[str]) -> str:
    """Return what picks layers, models and the theme for the whole page; hidden where no script runs."""
    boxes = "".join(
        f'<label class="model"><input type="checkbox" checked value="{escape(model)}">'
        f'<span class="spot c{1 + place % len(theme.PALETTE) if len(models) <= len(theme.PALETTE) else 0}"></span>'
        f"{escape(model)}</label>"
        for place, model in enumerate(models)
    )
    shown = f'<fieldset><legend>Models</legend><div class="models">{boxes}</div></fieldset>' if len(models) > 1 else ""
    return f"""<div class="page-controls" role="region" aria-label="What the charts show" hidden>
<fieldset><legend>Layers</legend>
<label>from <input type="number" name="from" min="0" step="1" inputmode="numeric"></label>
<label>to <input type="number" name="to" min="0" step="1" inputmode="numeric"></label>
<button type="button" name="all">all</button></fieldset>
{shown}
<label class="theme">Colours <select name="theme"><option value="">as the system</option><option value="light">light</option>
<option value="dark">dark</option></select></label>
</div>"""


def paragraph(text: str, kind: str = "") -> str:
    """Return plain text as a paragraph; what stands between backticks is code."""
    inner = _CODE.sub(r"<code>\1</code>", escape(text))
    return f'<p class="{kind}">{inner}</p>' if kind else f"<p>{inner}</p>"


def heading(text: str) -> str:
    """Return plain text as a heading below a section's."""
    return f"<h3>{escape(text)}</h3>"


def code(text: str, kind: str = "") -> str:
    """Return plain text as preformatted text."""
    return f'<pre class="{kind}">{escape(text)}</pre>' if kind else f"<pre>{escape(text)}</pre>"


def commands(lines: Sequence[tuple[str, str]]) -> str:
    """Return what is asked and the command that answers it, line by line."""
    rows = "".join(f"<tr><td>{escape(what)}</td><td><code>{escape(line)}</code></td></tr>" for what, line in lines)
    return scrolled(f"<table><tbody>{rows}</tbody></table>")


def definitions(pairs: Sequence[tuple[str, str]]) -> str:
    """Return short facts as a line of numbers with what they are below."""
    inner = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs)
    return f'<dl class="totals">{inner}</dl>'


def folded(summary: str, *inner: str) -> str:
    """Return HTML that a line of plain text opens."""
    return f"<details><summary>{escape(summary)}</summary>{''.join(inner)}</details>"


def table(frame: pl.DataFrame, sortable: bool = True) -> str:
    """Return a frame as a table whose headings sort it; numbers keep their full value for sorting.

    Tables of more than 2,000 rows are cut, and say so.
    """
    numeric = [kind.is_numeric() for kind in frame.dtypes]
    heads = "".join(_head(name, right, sortable) for name, right in zip(frame.columns, numeric, strict=True))
    whole = [right and bool((frame[name].drop_nulls() % 1 == 0).all()) for name, right in zip(frame.columns, numeric)]
    rows = "\n".join(
        "<tr>" + "".join(map(_cell, row, numeric, whole)) + "</tr>" for row in frame.head(MAX_TABLE_ROWS).iter_rows()
    )
    left = len(frame) - MAX_TABLE_ROWS
    note = paragraph(f"{left:,} more rows are in the store's `results`.", "faint") if left > 0 else ""
    return f"{scrolled(f'<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>')}{note}"


def scrolled(inner: str) -> str:
    """Let HTML that may be too wide for the page be scrolled, by the keyboard too."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="table">{inner}</div>'


def _head(name: str, right: bool, sortable: bool) -> str:
    text = f'<button type="button">{escape(name)}</button>' if sortable else escape(name)
    return f'<th scope="col"{" class=n" if right else ""}>{text}</th>'


def _cell(value: Any, right: bool, whole: bool) -> str:
    """Return a cell; `whole`: the column holds whole numbers alone, as a layer is that was computed as a mean of one."""
    if value is None:
        return "<td></td>"
    if not right:
        brief = " class=brief" if len(str(value)) <= _BRIEF else ""
        return f"<td{brief}>{escape(value)}</td>"
    shown = f"{int(value):,}" if whole else number(value, 3)
    return f'<td class="n" data-value="{value}" title="{value}">{shown}</td>'


def _section(section: Section, held: Embedded) -> str:
    """Return a section; open figures that follow each other share a line where there is room."""
    lines = []
    for beside, parts in itertools.groupby(section.parts, lambda part: isinstance(part, Figure) and not part.summary):
        drawn = "\n".join(_part(part, held) for part in parts)
        lines.append(f'<div class="figures">{drawn}</div>' if beside else drawn)
    again = folded("make this part again", code("\n".join(section.commands))) if section.commands else ""
    body = "\n".join(lines)
    return f'<section id="{section.anchor}">\n<h2>{escape(section.heading)}</h2>\n{body}\n{again}\n</section>'


def _part(part: Part, held: Embedded) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Numbers):
        name = held.frame(part.frame)
        return _table_place([name], len(part.frame), part.summary, slug(part.summary))
    return _figure(part, held)


def _figure(figure: Figure, held: Embedded) -> str:
    """Keep the figure's chart and return the place the script draws it in, and its numbers and downloads below it."""
    number_of_chart, frames = held.chart(figure.chart, figure.caption)
    name = slug(title_of(figure.chart) or figure.caption)
    rows = held.rows(frames)
    place = (
        f'<div class="chart" data-chart="{number_of_chart}" data-name="{name}"></div>'
        f"<figcaption>{escape(figure.caption)}</figcaption>"
        '<p class="tools"><button type="button" data-save="svg">SVG</button> '
        '<button type="button" data-save="png">PNG</button></p>'
    )
    drawn = f"<figure>{place}{_table_place(frames, rows, 'the numbers', name) if frames else ''}</figure>"
    return folded(figure.summary, drawn) if figure.summary else drawn


def _table_place(frames: Sequence[str], rows: int, summary: str, name: str) -> str:
    """Return what opens as the table of some frames."""
    held = f'data-frames="{" ".join(frames)}" data-name="{name}"'
    inner = '<p class="tools"><button type="button" data-save="csv">CSV</button> <span class="faint" role="status"></span></p>'
    return (
        f'<details class="numbers" {held}><summary>{escape(summary)} ({count(rows, "row")})</summary>'
        f"{inner}{scrolled('')}</details>"
    )


def title_of(chart: alt.TopLevelMixin) -> str:
    """Return the title above a figure."""
    return " ".join(marks.titles(chart))


def slug(text: str) -> str:
    """Return a file's name made of a text: lower-case letters, digits and hyphens."""
    return _SLUG.sub("-", text.lower()).strip("-")[:60].strip("-") or "chart"


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


@functools.cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script; the replacement keeps it from ending its element early."""
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _asset(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
