"""The charts that can stand alone, by name: `layercache plot NAME`, and how some of them are picked and put on one sheet."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import altair as alt
import polars as pl

from layercache import nearest
from layercache.errors import AnalysisError
from layercache.report import adaptation, figures, frames, in_depth, pathways, qualities, samples, texts
from layercache.report.figures import Chart
from layercache.report.frames import Task
from layercache.report.marks import titles
from layercache.store.reader import Store

SHEET = 1100
"""Pixels of a sheet of several charts: as many beside each other as fit."""
_BESIDE = 90
_WIDE = 1000

Drawn = Callable[[Store, pl.DataFrame], Sequence[Chart | None]]


class Plot(NamedTuple):
    """Charts with a name: what they show, the analysis they need, how they are drawn (None: no numbers for one).

    `further` draws those that are there only for who picks them; `captured` is what an extraction has to take for them
    that it does not take by itself, and how, for analyses alone do not bring it.
    """

    doc: str
    needs: str
    draw: Drawn
    further: Drawn = lambda store, numbers: []
    captured: str = ""


def charts(store: Store, numbers: pl.DataFrame, name: str, only: str = "") -> list[Chart]:
    """Draw the charts of a plot.

    Args:
        store: the store.
        numbers: `frames.results` of it.
        name: one of `PLOTS`.
        only: words. Charts whose titles begin with them; else the charts, or panels, whose titles have all of them; else
            those of `further`. Empty: every chart but these.

    Raises:
        AnalysisError: no plot is called that, the store has no numbers for it, or no title has the words.
    """
    if name not in PLOTS:
        raise AnalysisError(f"no plot {name!r}: {nearest.hint(name, PLOTS)}")
    found = [one for one in PLOTS[name].draw(store, numbers) if one is not None]
    if not found:
        needs, captured = PLOTS[name].needs, PLOTS[name].captured
        remedy = (
            f"it needs {captured}, and then `layercache analyze {needs}`"
            if captured
            else f"run `layercache analyze {needs}`"
        )
        raise AnalysisError(f"nothing to plot as {name!r} in {store.path}: {remedy}")
    if not only.split():
        return found
    further = [one for one in PLOTS[name].further(store, numbers) if one is not None]
    words = only.lower().split()
    called = [one for one in (*found, *further) if _title(one).lower().split()[: len(words)] == words]
    picked = [called, *([one for chart in own if (one := _with(chart, words)) is not None] for own in (found, further))]
    if not any(picked):
        there = ", ".join(dict.fromkeys(map(_title, (*found, *further))))
        raise AnalysisError(f"no chart of {name!r} has {only!r} in its title: there are {there}")
    return next(filter(None, picked))


def sheet(drawn: Sequence[Chart]) -> Chart:
    """Put charts on one sheet, in rows; each keeps its own colours and legends."""
    if len(drawn) == 1:
        return drawn[0]
    columns = max(1, SHEET // max(map(_width, drawn)))
    return alt.concat(*drawn, columns=columns, spacing=40).resolve_scale(
        color="independent", shape="independent", strokeDash="independent"
    )


def _title(chart: Chart) -> str:
    return " ".join(titles(chart))


def _with(chart: Chart, words: Sequence[str]) -> Chart | None:
    """Return a chart whose title has all words, or those of its panels for which its title and theirs together have."""
    above = titles(chart)

    def has(names: Sequence[str]) -> bool:
        whole = " ".join(names).lower()
        return all(word in whole for word in words)

    if has(above) or not isinstance(chart, alt.ConcatChart):
        return chart if has(above) else None
    panels = [panel for panel in chart.concat if has([*above, *titles(panel)])]
    if not panels:
        return None
    found = chart.copy(deep=False)
    found.concat = panels
    return found


def _width(chart: Chart) -> int:
    """Return about how many pixels a chart takes across."""
    if not isinstance(chart, alt.ConcatChart):
        return _WIDE
    widths = [panel.width if isinstance(panel.width, int) else _WIDE for panel in chart.concat]
    beside = min(len(widths), chart.columns if isinstance(chart.columns, int) else len(widths))
    return int(beside * (max(widths) + _BESIDE))


def _probe(store: Store, numbers: pl.DataFrame) -> list[Chart]:
    return [figures.probe(task, task.metric) for task in frames.tasks(numbers)]


def _probe_others(store: Store, numbers: pl.DataFrame) -> list[Chart]:
    return [figures.probe(task, metric) for task in frames.tasks(numbers) for metric in _others(task)]


def _others(task: Task) -> list[str]:
    return [name for name in task.scores["metric"].unique(maintain_order=True) if name != task.metric]


def _held_out(store: Store, numbers: pl.DataFrame) -> list[Chart | None]:
    return [figures.held_out(store, task) for task in frames.tasks(numbers)]


def _text(metrics: Sequence[str]) -> Drawn:
    """Return what draws the numbers of generated text that there are, of those named."""
    return lambda store, numbers: [
        figures.text(store, one, name) for one in texts.tasks(numbers) for name in metrics if name in texts.metrics(one)
    ]


def _text_others(store: Store, numbers: pl.DataFrame) -> list[Chart]:
    return [
        figures.text(store, one, name)
        for one in texts.tasks(numbers)
        for name in one.scores["metric"].unique(maintain_order=True)
        if name not in texts.HEADLINE
    ]


def _entropy(store: Store, numbers: pl.DataFrame) -> list[Chart | None]:
    return [figures.entropy(data, own) for data, own in frames.entropies(numbers)]


def _lens(metric: str) -> Drawn:
    return lambda store, numbers: [figures.lens(data, own, metric) for data, own in frames.entropies(numbers)]


def _depth(store: Store, numbers: pl.DataFrame) -> list[Chart | None]:
    return [figures.depth(store, data, own) for data, own in frames.entropies(numbers)]


def _tokens(store: Store, numbers: pl.DataFrame) -> list[Chart]:
    return [figures.tokens(sample) for sample in samples.choose(store) if len(sample.tokens)]


def _heat(store: Store, numbers: pl.DataFrame) -> list[Chart]:
    return [figures.heat(sample) for sample in samples.choose(store) if len(sample.grid)]


def _answers(store: Store, numbers: pl.DataFrame) -> list[Chart | None]:
    tasks = {(task.data, task.label): task for task in adaptation.tasks(numbers)}
    return [
        adaptation.answered(tasks.get((data, label)), own, "accuracy", data, label)
        for data, label, own in adaptation.answers(numbers)
    ]


def _rank_alpha(store: Store, numbers: pl.DataFrame) -> list[Chart | None]:
    return [adaptation.heat(task) for task in adaptation.tasks(numbers)]


def _adapted(store: Store, numbers: pl.DataFrame) -> list[Chart | None]:
    metrics = (*adaptation.GAPS, "cka_with_base")
    return [adaptation.gaps(task, metric) for task in adaptation.tasks(numbers) for metric in metrics]


def _delta_p(store: Store, numbers: pl.DataFrame) -> list[Chart | None]:
    return [
        pathways.differences(task, metric, data)
        for task in pathways.tasks(numbers)
        for data in task.data
        for metric in pathways.DIFFERENCES
    ]


def _pathways(store: Store, numbers: pl.DataFrame) -> list[Chart | None]:
    return [pathways.split(task, name) for task in pathways.tasks(numbers) for name in task.conditions()]


def _quality(store: Store, numbers: pl.DataFrame) -> list[Chart]:
    return [one for data in qualities.data_sets(numbers) for one in qualities.by_depth(store, numbers, data)]


def _distributions(store: Store, numbers: pl.DataFrame) -> list[Chart]:
    return [one for data in qualities.data_sets(numbers) for one in qualities.histograms(store, data)]


def _likeness(metric: str) -> Drawn:
    return lambda store, numbers: [
        one for data in qualities.data_sets(numbers) for one in qualities.likeness(store, numbers, data, metric)
    ]


def _strengths(store: Store, numbers: pl.DataFrame) -> list[Chart]:
    return [one for data in qualities.data_sets(numbers) for one in qualities.strengths(numbers, data)]


PLOTS: dict[str, Plot] = {
    "probe": Plot("probe scores over layers, with intervals and baselines", "probe", _probe, _probe_others),
    "predictions": Plot("held-out predictions of the best probes against the truth", "probe", _held_out),
    "entropy": Plot("entropy of the lens over layers, with quantile bands", "entropy", _entropy),
    "agreement": Plot("share of samples whose top token is the last layer's", "entropy", _lens("agrees_with_final")),
    "distance": Plot("KL divergence from the last layer", "entropy", _lens("kl_to_final")),
    "target": Plot(
        "log-probability of the target token",
        "entropy",
        _lens("target_logprob"),
        captured="prompts with a target (`layercache extract … --target COLUMN`)",
    ),
    "depth": Plot("the layer at which predictions settle", "entropy", _depth),
    "text": Plot("scores of the text that every layer wrote", "text", _text(texts.HEADLINE), _text_others),
    "quantisation": Plot("what quantisation changes in them", "text", _text(texts.DIFFERENCES)),
    "consistency": Plot("how well the lens tells right answers from wrong ones", "text", _text(texts.FORETOLD)),
    "delta_p": Plot("what a knockout does to a probe of truthfulness, minus its control", "delta_p", _delta_p),
    "pathways": Plot("the same by outcome, beside its noise floor (the study's figure)", "delta_p", _pathways),
    "quality": Plot("quality of states over the depth of every model", "quality", _quality),
    "distributions": Plot("distribution of statistics over tokens at every layer", "quality", _distributions),
    "cka": Plot("CKA of every two layers, within and between models", "quality", _likeness("cka")),
    "mutual_knn": Plot("common nearest neighbours of every two layers", "quality", _likeness("mutual_knn")),
    "perturbations": Plot("numbers against the strength of a perturbation", "quality", _strengths),
    "transfer": Plot(
        "probes of one layer read on the states of every other",
        "probe_depth",
        lambda store, numbers: in_depth.layer_transfer(numbers),
    ),
    "run_transfer": Plot(
        "probes of one model read on the states of another",
        "probe_depth --measures transfer_runs",
        lambda store, numbers: in_depth.run_transfer(numbers, frames.model_names(store)),
    ),
    "concept_depth": Plot(
        "the layers in which a label forms",
        "probe_depth",
        lambda store, numbers: in_depth.concept_depth(numbers),
    ),
    "checkpoints": Plot(
        "numbers by layer over the steps of a training",
        "probe` on runs of several training steps (`revisions`), or `layercache analyze entropy",
        in_depth.checkpoints,
    ),
    "answers": Plot("accuracy of the answers that every layer prefers", "choices", _answers),
    "rank_alpha": Plot("accuracy of a grid of adapters by rank and alpha", "compare", _rank_alpha),
    "adaptation": Plot("what adapters change at every layer", "compare", _adapted),
    "tokens": Plot("the most probable tokens of a few samples, by layer", "entropy", _tokens),
    "lens": Plot(
        "the logit lens at every token of a few samples (--lens token)",
        "entropy",
        _heat,
        captured="the lens at every token (`layercache extract … --lens token`)",
    ),
}
