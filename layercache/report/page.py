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
from layercache.report import theme
from layercache.report.text import escape, number, plain, script_json

_HERE = Path(__file__).parent
MAX_TABLE_ROWS = 2000
_OWN = (("css", "style"), ("js", "script"))
_CODE = re.compile(r"`([^`]*)`")


@dataclass(frozen=True)
class Figure:
    """A chart, what it shows in words, and where it is folded away the line to open it by."""

    chart: alt.TopLevelMixin
    caption: str
    summary: str | None = None


@dataclass(frozen=True)
class Section:
    """A part of the page: an anchor, a heading, and HTML and figures in order.

    A section may have a script and a style of its own; the script finds `data` as JSON in the element `<anchor>-data`.
    """

    anchor: str
    heading: str
    parts: list[str | Figure]
    data: dict[str, Any] | None = None
    script: str = ""
    style: str = ""

    @property
    def embedded(self) -> str:
        """The element with the data."""
        data = "" if self.data is None else script_json(self.data)
        return f'<script type="application/json" id="{self.anchor}-data">{data}</script>\n' if data else ""


def render(title: str, sections: Sequence[Section]) -> str:
    """Return the page.

    Args:
        title: plain text.
        sections: their strings are HTML already; use `paragraph`, `table` and the like to make it.
    """
    specs: list[dict[str, Any]] = []
    body = "\n".join(_section(section, specs) for section in sections)
    links = "".join(f'<li><a href="#{section.anchor}">{escape(section.heading)}</a></li>' for section in sections)
    style, code = ("".join([_asset(f"page.{kind}"), *(getattr(one, name) for one in sections)]) for kind, name in _OWN)
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
<header>
<h1>{escape(title)}</h1>
<p class="faint">Made by layercache {__version__} on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.</p>
<nav><ul>{links}</ul></nav>
</header>
<noscript><p>The charts need JavaScript; their numbers are in the tables.</p></noscript>
<main>
{body}
</main>
<footer class="faint">Charts are drawn by Vega, Vega-Lite and Vega-Embed (BSD-3-Clause), which are part of this file.</footer>
<script type="application/json" id="specs">{script_json(specs)}</script>
{"".join(section.embedded for section in sections)}<script>{bundle}</script>
<script>{code}</script>
</body>
</html>
"""


def spec(chart: alt.TopLevelMixin, config: dict[str, Any], description: str = "") -> dict[str, Any]:
    """Return a chart's Vega-Lite specification in a theme (`theme.FILE`, `theme.PAGE`)."""
    with alt.data_transformers.disable_max_rows():
        drawn = chart.to_dict()
    return {**drawn, "config": config, **({"description": plain(description)} if description else {})}


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
    return f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>'


def folded(summary: str, *inner: str) -> str:
    """Return HTML that a line of plain text opens."""
    return f"<details><summary>{escape(summary)}</summary>{''.join(inner)}</details>"


def table(frame: pl.DataFrame, sortable: bool = True) -> str:
    """Return a frame as a table whose headings sort it; numbers keep their full value for sorting.

    Tables of more than 2,000 rows are cut, and say so.
    """
    numeric = [kind.is_numeric() for kind in frame.dtypes]
    heads = "".join(_head(name, right, sortable) for name, right in zip(frame.columns, numeric, strict=True))
    rows = "\n".join(
        "<tr>" + "".join(_cell(value, right) for value, right in zip(row, numeric, strict=True)) + "</tr>"
        for row in frame.head(MAX_TABLE_ROWS).iter_rows()
    )
    left = len(frame) - MAX_TABLE_ROWS
    note = paragraph(f"{left:,} more rows are in the store's `results`.", "faint") if left > 0 else ""
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>{note}'


def _head(name: str, right: bool, sortable: bool) -> str:
    text = f'<button type="button">{escape(name)}</button>' if sortable else escape(name)
    return f'<th scope="col"{" class=n" if right else ""}>{text}</th>'


def _cell(value: Any, right: bool) -> str:
    if value is None:
        return "<td></td>"
    if not right:
        return f"<td>{escape(value)}</td>"
    shown = f"{value:,}" if isinstance(value, int) else number(value, 3)
    return f'<td class="n" data-value="{value}">{shown}</td>'


def _section(section: Section, specs: list[dict[str, Any]]) -> str:
    """Return a section; open figures that follow each other share a line where there is room."""
    lines = []
    for beside, parts in itertools.groupby(section.parts, lambda part: isinstance(part, Figure) and not part.summary):
        drawn = "\n".join(part if isinstance(part, str) else _figure(part, specs) for part in parts)
        lines.append(f'<div class="figures">{drawn}</div>' if beside else drawn)
    body = "\n".join(lines)
    return f'<section id="{section.anchor}">\n<h2>{escape(section.heading)}</h2>\n{body}\n</section>'


def _figure(figure: Figure, specs: list[dict[str, Any]]) -> str:
    """Put the figure's specification in `specs` and return the place the script draws it in."""
    specs.append(spec(figure.chart, theme.PAGE, figure.caption))
    place = f'<div class="chart" data-chart="{len(specs) - 1}"></div><figcaption>{escape(figure.caption)}</figcaption>'
    drawn = f"<figure>{place}</figure>"
    return folded(figure.summary, drawn) if figure.summary else drawn


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


@functools.cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script; the replacement keeps it from ending its element early."""
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _asset(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
