"""The parts of the page about answers by layer and about adapters."""

import polars as pl

from layercache.report import adaptation, page
from layercache.report.measures import measure
from layercache.report.page import Figure, Section
from layercache.report.text import capital, plain

_ANSWERS_NOTE = (
    "The logit lens scores given answers at every layer: the preferred one is that of the highest log-probability. Rows are "
    "those that probes report, the test split where there is one; bands are 95 % intervals over groups of rows."
)
_NOTE = (
    "Every adapter is one more model, held against its base on the same rows. Differences are paired and their intervals "
    "resample whole groups of rows; McNemar's test takes rows as independent."
)


def answers_section(numbers: pl.DataFrame) -> Section:
    """Return which answers the layers prefer, a part a data set and label."""
    parts: list[page.Part] = [page.paragraph(_ANSWERS_NOTE, "faint")]
    tasks = {(task.data, task.label): task for task in adaptation.tasks(numbers)}
    for data, label, own in adaptation.answers(numbers):
        parts.append(page.heading(f"{plain(label)} ({plain(data)})"))
        for metric in ("accuracy", "choice_ece", "choice_brier", "choice_mass"):
            drawn = adaptation.answered(tasks.get((data, label)), own, metric, data, label)
            name = measure(metric).name
            if drawn is not None:
                parts.append(
                    Figure(
                        drawn,
                        f"{capital(name)} of the preferred answers over layers.",
                        None if metric == "accuracy" else name,
                    )
                )
    return Section("answers", "What each layer answers", parts)


def adaptation_sections(numbers: pl.DataFrame) -> list[Section]:
    """Return what adapters change, a part a data set and label; no section where there are none."""
    found = adaptation.tasks(numbers)
    parts: list[page.Part] = [page.paragraph(_NOTE, "faint")]
    for task in found:
        title = f"{plain(task.label)} ({plain(task.data)})"
        parts.append(page.heading(title))
        parts += [page.paragraph(line, "finding") for line in adaptation.finding(task)]
        parts.append(page.table(adaptation.table(task)))
        drawn = adaptation.heat(task)
        if drawn is not None:
            parts.append(
                Figure(drawn, "Accuracy on the rows tested, mean over seeds; colours from the lowest to the highest.")
            )
        for metric in (*adaptation.GAPS, "cka_with_base"):
            curves = adaptation.gaps(task, metric)
            if curves is not None:
                parts.append(
                    Figure(
                        curves, f"{capital(measure(metric).name)} over layers, of adapters from the best to the worst."
                    )
                )
        drawn_already = pl.col("metric").is_in(["accuracy", *adaptation.GAPS, "cka_with_base", "cell_accuracy"])
        parts.append(page.Numbers(_stored(task.numbers.filter(~drawn_already)), "other numbers"))
    return [Section("adaptation", "What adapting changed", parts)] if found else []


def _stored(numbers: pl.DataFrame) -> pl.DataFrame:
    """Return the numbers as they are stored, for a table."""
    return numbers.select("model", "layer", "panel", "group", "metric", "value", "low", "high", "n")
