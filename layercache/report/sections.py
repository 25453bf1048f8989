"""The parts of the page that analyses fill: for each a sentence made from its numbers, its charts, its table."""

from collections.abc import Sequence

import altair as alt
import polars as pl

from layercache.report import figures, frames, page, pathways, qualities, texts
from layercache.report.measures import measure
from layercache.report.page import Figure, Section
from layercache.report.sentences import entropy_finding, layers_finding, probe_finding
from layercache.report.text import capital
from layercache.store.reader import Store

_PROBE_NOTE = (
    "Each point is a linear probe's score on rows it was not fitted on; bands are 95 % intervals over samples. The best "
    "of many layers flatters itself a little: read the curve, not only its top."
)
_ENTROPY_NOTE = (
    "The logit lens reads every layer through the model's own final norm and unembedding. Entropy says how spread "
    "out that distribution over the vocabulary is; the bands hold the middle part of the samples."
)
_TEXT_NOTE = (
    "Each layer's text was generated from that layer alone, through the final norm and unembedding, and is compared with "
    "the row's references. Layers see the same rows; BLEU and chrF are those of all texts together. What every layer "
    "wrote for single rows is under “Samples”."
)
_PATHWAYS_NOTE = (
    "A probe of each layer's clean states says whether an answer is right; the same probe then reads the states of passes in "
    "which the question was knocked out, and of a control in which as many other tokens were. Every sample is scored by a "
    "probe that was fitted on other prompts. ΔP is what the probability of its clean prediction gains under the change, in "
    "percentage points: below 0 where it loses."
)
_EVIDENCE_CAPTION = (
    "{}, on the same samples, with paired 95 % intervals. This carries the evidence: any disturbance costs a prediction "
    "something, and what is due to the question is what goes beyond the control."
)
_SPLIT_CAPTION = (
    "ΔP of the samples that flip at one layer and of those that do not. The split is on the outcome: what flips has lost at "
    "least what it takes to flip, so that noise without any pathway draws this figure too (dashed: noise with the same flip "
    "rate, blind to label and question). Only what lies beyond the dashed lines says anything, and the figure above says it better."
)
_QUALITY_NOTE = (
    "What the states of each layer are like, without any label: how many directions they use, how near one another they lie, "
    "and what of a prompt stays when its spelling changes. No number is better higher up by itself; dashed lines are chance."
)

_DRAWN = ("agrees_with_final", "kl_to_final", "target_logprob")


def probe_section(store: Store, numbers: pl.DataFrame) -> Section:
    """Return what the probes found, a part a label."""
    parts: list[page.Part] = [page.paragraph(_PROBE_NOTE, "faint")]
    for task in frames.tasks(numbers):
        parts.append(page.heading(f"{task.label} ({task.data})"))
        parts += [page.paragraph(line, "finding") for line in probe_finding(task)]
        parts += [page.paragraph(line, "finding") for line in layers_finding(task, numbers)]
        shown = measure(task.metric)
        cut = (
            "; what lies beyond the axis is cut off, the table has it"
            if figures.look(task.scores.filter(metric=task.metric), task.metric).cut
            else ""
        )
        parts.append(
            Figure(figures.probe(task, task.metric), f"{capital(shown.name)} of {task.label} over layers{cut}.")
        )
        held_out = figures.held_out(store, task)
        if held_out is not None:
            parts.append(
                Figure(
                    held_out,
                    f"Held-out predictions of {task.label} at the best layer.",
                    "predictions against the truth",
                )
            )
        others = [metric for metric in task.scores["metric"].unique(maintain_order=True) if metric != task.metric]
        for metric in others:
            name = measure(metric).name
            parts.append(Figure(figures.probe(task, metric), f"{capital(name)} of {task.label} over layers.", name))
        three = frames.three_layers(task, {run.id: run.final_layer for run in store.runs()})
        if len(three):
            parts.append(page.folded("first, middle and last layer", page.table(three)))
        if len(task.wins):
            parts.append(page.Numbers(_numbers(task.wins), "how often each layer is the best one, over resamples"))
    return Section("probes", "What each layer knows", parts)


def entropy_section(store: Store, numbers: pl.DataFrame) -> Section:
    """Return what the lens shows, a part a data set."""
    parts: list[page.Part] = [page.paragraph(_ENTROPY_NOTE, "faint")]
    for data, own in frames.entropies(numbers):
        parts.append(page.heading(data))
        parts += [page.paragraph(line, "finding") for line in entropy_finding(own)]
        drawn = [
            (figures.entropy(data, own), "Entropy of the lens over layers: median and quantiles over samples.", None),
            (
                figures.lens(data, own, "agrees_with_final"),
                "Share of samples whose most probable token is already the last layer's, with 95 % intervals.",
                None,
            ),
            (
                figures.depth(store, data, own),
                "The layer from which a sample's most probable token stays the last layer's.",
                None,
            ),
            (
                figures.lens(data, own, "kl_to_final"),
                "KL divergence of the layer's distribution from the last layer's.",
                None,
            ),
            (
                figures.lens(data, own, "target_logprob"),
                "Mean log-probability of the target token.",
                "target's log-probability",
            ),
        ]
        parts += [Figure(chart, caption, summary) for chart, caption, summary in drawn if chart is not None]
        rest = own.filter(~pl.col("metric").is_in(_DRAWN) & ~pl.col("metric").str.starts_with("entropy_q"))
        parts.append(page.Numbers(_numbers(rest), "other numbers of the lens"))
    return Section("lens", "How predictions form", parts)


def text_section(store: Store, numbers: pl.DataFrame) -> Section:
    """Return how good the text of every layer is, a part a data set and generated output."""
    parts: list[page.Part] = [page.paragraph(_TEXT_NOTE, "faint")]
    for task in texts.tasks(numbers):
        parts.append(page.heading(f"{task.data}, {task.output}"))
        parts += [page.paragraph(line, "finding") for line in texts.finding(task)]
        opened = (*texts.HEADLINE[:4], f"{task.metric}_minus_other", texts.FORETOLD[0])
        known = texts.metrics(task)
        for metric in [*(name for name in opened if name in known), *(name for name in known if name not in opened)]:
            name = measure(metric).name
            caption = f"{capital(name)} over layers, with 95 % intervals."
            parts.append(Figure(figures.text(store, task, metric), caption, None if metric in opened else name))
    return Section("text", "What each layer writes", parts)


def pathways_section(numbers: pl.DataFrame) -> Section:
    """Return what knocking out the question does to a probe of truthfulness: the evidence, then the study's figure."""
    parts: list[page.Part] = [page.paragraph(_PATHWAYS_NOTE, "faint")]
    for task in pathways.tasks(numbers):
        parts.append(page.heading(f"{task.label}, read at {task.place}"))
        parts += [page.paragraph(line, "finding") for line in pathways.finding(task)]
        for data in task.data:
            for metric in pathways.DIFFERENCES:
                drawn = pathways.differences(task, metric, data)
                if drawn is not None:
                    parts.append(Figure(drawn, _EVIDENCE_CAPTION.format(capital(measure(metric).name))))
        for at, condition in enumerate(task.conditions()):
            figure = pathways.split(task, condition)
            if figure is not None:
                parts.append(Figure(figure, _SPLIT_CAPTION, f"the same by outcome: {condition}" if at else None))
        for summary, metrics in pathways.TABLES.items():
            table = pathways.numbers_of(task, metrics)
            if len(table):
                parts.append(page.Numbers(table, summary))
    return Section("pathways", "Does truthfulness hang on the question?", parts)


def quality_section(store: Store, numbers: pl.DataFrame) -> Section:
    """Return what the states of every layer are like, a part a data set."""
    parts: list[page.Part] = [page.paragraph(_QUALITY_NOTE, "faint")]
    for data in qualities.data_sets(numbers):
        parts.append(page.heading(data))
        parts += [page.paragraph(line, "finding") for line in qualities.finding(numbers, data)]
        depth = "Numbers over depth: 0 % is the embedding output, 100 % the last block's; bands are 95 % intervals."
        parts += [Figure(one, depth) for one in qualities.by_depth(store, numbers, data)]
        changed = "Numbers against how much of each prompt was changed, at a few layers, with 95 % intervals."
        parts += _one_open(qualities.strengths(numbers, data), changed)
        spread = "How samples are distributed at every layer; two dark bands in a column are two kinds of samples."
        parts += _one_open(qualities.histograms(store, data), spread)
        for metric in ("cka", "cka_biased", "mutual_knn"):
            caption = f"{capital(measure(metric).name)} of every two layers, from 0 (faint) to 1."
            alike = qualities.likeness(store, numbers, data, metric)
            parts += _one_open(alike, caption, opened=int(metric == "cka"))
        parts.append(page.Numbers(qualities.not_drawn(numbers, data), "other numbers"))
    return Section("quality", "What the states are like", parts)


def _one_open(charts: Sequence[alt.TopLevelMixin], caption: str, opened: int = 1) -> list[page.Part]:
    """Return figures of which all but the first are folded away under their titles."""
    return [Figure(chart, caption, None if at < opened else page.title_of(chart)) for at, chart in enumerate(charts)]


def _numbers(*parts: pl.DataFrame) -> pl.DataFrame:
    """Return the numbers as they are stored, without columns that say nothing here."""
    names = ("model", "layer", "panel", "group", "metric", "value", "low", "high", "n")
    frame = pl.concat([part.select(names) for part in parts])
    kept = frame.select(name for name in frame.columns if frame[name].null_count() < len(frame))
    if "group" in kept.columns:
        kept = kept.with_columns(pl.col("group").fill_null("probe"))
    return kept
