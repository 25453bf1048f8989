"""The report: one self-contained HTML page, and its charts as files. No network, no torch.

build(store, Path("report.html"), ReportSpec())     the page
plot(store, "probe", Path("probe.svg"))             one chart
write_charts(store, Path("charts"))                 every chart, and the numbers as CSV
"""

import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import altair as alt
import polars as pl
import vl_convert

from layercache import nearest
from layercache.errors import AnalysisError, LayercacheError
from layercache.progress import Patient, Progress
from layercache.recipe import ReportSpec
from layercache.report import (
    adapted_sections,
    again,
    browser,
    depth_sections,
    embed,
    figures,
    frames,
    in_depth,
    overview,
    page,
    sections,
)
from layercache.store.reader import Store

__all__ = ["PLOTS", "SUFFIXES", "build", "plot", "write_charts"]

PLOTS: dict[str, str] = {name: plot.doc for name, plot in figures.PLOTS.items()}
"""Every chart that `plot` draws, and what it shows."""
_COMPARED = ("best_layer", "best_depth", "best_score", "picked_share")
SUFFIXES = (".svg", ".png", ".pdf", ".html", ".json")


def build(
    store: Store, out: Path, spec: ReportSpec, title: str | None = None, progress: Progress | None = None
) -> Path:
    """Write the report as one HTML file that needs nothing else; the file appears whole or not at all.

    Args:
        store: an open store.
        out: the file; its folder must be there.
        spec: how many samples and tokens are shown.
        title: wins over the one of `spec`.
        progress: where to report.

    Returns:
        `out`.

    Raises:
        AnalysisError: the store is empty or nothing in it has been analysed.
        LayercacheError: the file cannot be written.
    """
    _check_folder(out)
    numbers = _numbers(store)
    held, steps = set(numbers["analysis"]), in_depth.checkpoints(store, numbers)
    makers: list[Callable[[], Sequence[page.Section]]] = [
        lambda: [overview.overview(store)],
        lambda: [sections.probe_section(store, numbers)],
        lambda: [depth_sections.deep_section(store, numbers)] if "probe_depth" in held else [],
        lambda: [depth_sections.compare_section(numbers)] if numbers["metric"].is_in(_COMPARED).any() else [],
        lambda: [depth_sections.steps_section(steps)] if steps else [],
        lambda: [sections.entropy_section(store, numbers)],
        lambda: [sections.text_section(numbers)] if "text" in held else [],
        lambda: [sections.pathways_section(numbers)] if "delta_p" in held else [],
        lambda: [sections.quality_section(store, numbers)] if "quality" in held else [],
        lambda: [adapted_sections.answers_section(numbers)] if "choices" in held else [],
        lambda: adapted_sections.adaptation_sections(numbers),
        lambda: [browser.section(store, numbers, spec, overview.place(store.path))] if spec.samples else [],
        lambda: [overview.questions(store)],
        lambda: [overview.reproduction(store, out)],
    ]
    parts: list[page.Section] = []
    # The page itself takes as long as some sections do.
    with Patient(progress or Progress()).task("report", len(makers) + 1, "sections") as bar:
        for made in makers:
            parts += [_with_commands(store, part) for part in made()]
            bar.advance()
        models = numbers["model"].drop_nulls().unique().sort().to_list()
        content = page.render(title or spec.title or "layercache report", parts, models).encode()
        bar.advance()
    _write(out, content)
    return out


def _with_commands(store: Store, part: page.Section) -> page.Section:
    """Add to a section the commands that make its numbers again."""
    if part.anchor not in again.PARTS:
        return part
    return replace(part, commands=again.analysis(store, *again.PARTS[part.anchor]))


def plot(store: Store, name: str, out: Path) -> Path:
    """Draw one chart of `PLOTS` into a file: SVG, PNG, PDF, a page of its own, or the Vega-Lite specification.

    Raises:
        AnalysisError: no chart is called that, or the store has no numbers for it.
        LayercacheError: the suffix is not one of `SUFFIXES`, or the file cannot be written.
    """
    if name not in figures.PLOTS:
        raise AnalysisError(f"no plot {name!r}: {nearest.hint(name, figures.PLOTS)}")
    if out.suffix.lower() not in SUFFIXES:
        raise LayercacheError(f"cannot tell what to write from {out.name!r}: end it in {', '.join(SUFFIXES)}")
    _check_folder(out)
    chart = figures.PLOTS[name].draw(store, _numbers(store))
    if chart is None:
        raise AnalysisError(
            f"nothing to plot as {name!r} in {store.path}: run `layercache analyze {figures.PLOTS[name].needs}`"
        )
    _write(out, _encoded(chart, out.suffix.lower(), f"layercache: {name}"))
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
    with Patient(progress or Progress()).task("charts", len(figures.PLOTS), "charts") as bar:
        for name, one in figures.PLOTS.items():
            chart = one.draw(store, numbers)
            if chart is not None:
                written.append(folder / f"{name}.svg")
                _write(written[-1], _encoded(chart, ".svg", ""))
            bar.advance()
    written.append(folder / "results.csv")
    _write(written[-1], frames.stored(numbers).write_csv().encode())
    return written


def _numbers(store: Store) -> pl.DataFrame:
    if not store.runs():
        raise AnalysisError(f"the store {store.path} is empty: run `layercache extract`, then `layercache analyze`")
    numbers = frames.results(store)
    if not len(numbers):
        raise AnalysisError(f"nothing in {store.path} has been analysed: run `layercache analyze probe entropy` first")
    return numbers


def _encoded(chart: alt.TopLevelMixin, suffix: str, title: str) -> bytes:
    """Return a chart as the bytes of a file."""
    spec = embed.alone(chart)
    if suffix == ".svg":
        return str(vl_convert.vegalite_to_svg(spec)).encode()
    if suffix == ".png":
        return bytes(vl_convert.vegalite_to_png(spec, scale=2))
    if suffix == ".pdf":
        return bytes(vl_convert.vegalite_to_pdf(spec))
    if suffix == ".json":
        return json.dumps(spec, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    return page.render(title, [page.Section("chart", title, [page.Figure(chart, "")])]).encode()


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
