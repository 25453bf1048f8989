"""The report: one self-contained HTML page, and its charts as files. No network, no torch.

build(store, Path("report.html"), ReportSpec())     the page
plot(store, "probe", Path("probe.svg"))             one chart
write_charts(store, Path("charts"))                 every chart, and the numbers as CSV
"""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import altair as alt
import polars as pl
import vl_convert

from layercache import nearest
from layercache.errors import AnalysisError, LayercacheError
from layercache.progress import Patient, Progress
from layercache.recipe import ReportSpec
from layercache.report import browser, contents, embed, frames, overview, page, plots
from layercache.store import recipes
from layercache.store.reader import Store

__all__ = ["PLOTS", "SUFFIXES", "build", "plot", "write_charts"]

PLOTS: dict[str, str] = {name: plot.doc for name, plot in plots.PLOTS.items()}
"""Every chart that `plot` draws, and what it shows."""
SUFFIXES = (".svg", ".png", ".pdf", ".html", ".json")


def build(
    store: Store, out: Path, spec: ReportSpec, title: str | None = None, progress: Progress | None = None
) -> Path:
    """Write the report as one HTML file that needs nothing else; the file appears whole or not at all.

    Args:
        store: an open store.
        out: the file; its folder must be there.
        spec: how many samples and tokens are shown.
        title: wins over the one of `spec`; without either the newest recipe kept in the store gives its title or name.
        progress: where to report.

    Returns:
        `out`.

    Raises:
        AnalysisError: the store is empty or nothing in it has been analysed.
        LayercacheError: the file cannot be written.
    """
    _check_folder(out)
    numbers = _numbers(store)
    makers = contents.makers(store, numbers)
    found: list[page.Section] = []
    # The samples and the page itself take as long as some sections do.
    with Patient(progress or Progress()).task("report", len(makers) + 2, "sections") as bar:
        for made in makers:
            found += made()
            bar.advance()
        parts = [
            overview.overview(store),
            *contents.ordered(store, found),
            *([browser.section(store, numbers, spec, overview.place(store.path))] if spec.samples else []),
            overview.questions(store, contents.not_analysed(store, numbers)),
            overview.reproduction(store, out),
        ]
        bar.advance()
        models = numbers["model"].drop_nulls().unique().sort().to_list()
        content = page.render(title or spec.title or _title(store), parts, models).encode()
        bar.advance()
    _write(out, content)
    return out


def plot(store: Store, name: str, out: Path, only: str = "") -> Path:
    """Draw the charts of one of `PLOTS` into a file: SVG, PNG, PDF, a page of its own, or the Vega-Lite specification.

    Args:
        store: an open store.
        name: one of `PLOTS`.
        out: the file; its suffix is one of `SUFFIXES`, its folder must be there.
        only: words. Of several charts those whose titles begin with them; else the charts, or panels, whose titles have
            all of them. Charts of `probe` and `text` that are drawn for such words alone: those of every other metric.

    Raises:
        AnalysisError: no chart is called that, the store has no numbers for it, or no title has the words.
        LayercacheError: the suffix is not one of `SUFFIXES`, or the file cannot be written.
    """
    if name not in plots.PLOTS:
        raise AnalysisError(f"no plot {name!r}: {nearest.hint(name, plots.PLOTS)}")
    if out.suffix.lower() not in SUFFIXES:
        raise LayercacheError(f"cannot tell what to write from {out.name!r}: end it in {', '.join(SUFFIXES)}")
    _check_folder(out)
    charts = plots.charts(store, _numbers(store), name, only)
    _write(out, _encoded(charts, out.suffix.lower(), f"layercache: {name}"))
    return out


def write_charts(store: Store, folder: Path, progress: Progress | None = None) -> list[Path]:
    """Write every chart there are numbers for as SVG, and the numbers themselves as `results.csv`.

    Args:
        store: an open store.
        folder: where to; made where there is none.
        progress: where to report.

    Returns:
        The files, in the order of `PLOTS`.

    Raises:
        AnalysisError: nothing in the store has been analysed.
        LayercacheError: the folder cannot be written.
    """
    _check_folder(folder)
    numbers = _numbers(store)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise LayercacheError(f"cannot make the folder {folder}: {error.strerror}") from error
    written = []
    with Patient(progress or Progress()).task("charts", len(plots.PLOTS), "charts") as bar:
        for name, one in plots.PLOTS.items():
            charts = [chart for chart in one.draw(store, numbers) if chart is not None]
            if charts:
                written.append(folder / f"{name}.svg")
                _write(written[-1], _encoded(charts, ".svg", ""))
            bar.advance()
    written.append(folder / "results.csv")
    _write(written[-1], frames.stored(numbers).write_csv().encode())
    return written


def _title(store: Store) -> str:
    kept = recipes.newest(store.path) or {}
    own = kept.get("report")
    heading = own.get("title") if isinstance(own, dict) else None
    return str(kept.get("title") or heading or kept.get("name") or "layercache report")


def _numbers(store: Store) -> pl.DataFrame:
    if not store.runs():
        raise AnalysisError(f"the store {store.path} is empty: run `layercache extract`, then `layercache analyze`")
    numbers = frames.results(store)
    if not len(numbers):
        raise AnalysisError(f"nothing in {store.path} has been analysed: run `layercache analyze probe entropy` first")
    return numbers


def _encoded(charts: Sequence[alt.TopLevelMixin], suffix: str, title: str) -> bytes:
    """Return charts as the bytes of a file; on a page each is a figure of its own."""
    if suffix == ".html":
        figures = [page.Figure(chart, page.title_of(chart)) for chart in charts]
        return page.render(title, [page.Section("chart", title, figures)]).encode()
    spec = embed.alone(plots.sheet(charts))
    if suffix == ".svg":
        return str(vl_convert.vegalite_to_svg(spec)).encode()
    if suffix == ".png":
        return bytes(vl_convert.vegalite_to_png(spec, scale=2))
    if suffix == ".pdf":
        return bytes(vl_convert.vegalite_to_pdf(spec))
    return json.dumps(spec, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _check_folder(out: Path) -> None:
    folder = out.absolute().parent
    if not folder.is_dir():
        raise LayercacheError(
            f"cannot write {out}: there is no folder {out.parent}: make it first, or give another path"
        )


def _write(out: Path, content: bytes) -> None:
    """Put a file in place at once: readers see the old one or the new one, never a part."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(out)
    except OSError as error:
        raise LayercacheError(f"cannot write {out}: {error.strerror}") from error
    finally:
        # Also where it was stopped.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
