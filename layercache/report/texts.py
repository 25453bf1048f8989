"""Generated text in the report: scores over layers, and findings in words."""

from typing import Any, NamedTuple

import polars as pl

from layercache.report.frames import clean
from layercache.report.measures import measure
from layercache.report.text import count, interval

HEADLINE = ("token_f1", "rouge_l", "bleu", "bertscore_f1", "exact_match", "chrf")
"""Scores whose figures are open, the first there is being the one that findings quote."""
_DIFFERENCE, _FORETOLD = "_minus_other", "auc_"
DIFFERENCES = tuple(f"{name}{_DIFFERENCE}" for name in HEADLINE)
FORETOLD = tuple(f"{_FORETOLD}{name}" for name in ("entropy", "kl_to_final", "js_to_final", "agrees_with_final"))


class TextTask(NamedTuple):
    """A generated output of a data set.

    Attributes:
        label: the columns of references; None where nothing is compared.
        output: the output's name.
        scores: rows of `results` of every score, a line a model, layer and metric.
        differences: the same of quantised runs against the others.
        foretold: the same of what the lens says of right answers, `auc_…`.
    """

    data: str
    label: str | None
    output: str
    scores: pl.DataFrame
    differences: pl.DataFrame
    foretold: pl.DataFrame

    @property
    def metric(self) -> str:
        """The score that is quoted."""
        known = self.scores["metric"].unique(maintain_order=True).to_list()
        return next((name for name in HEADLINE if name in known), known[0])


def tasks(numbers: pl.DataFrame) -> list[TextTask]:
    """Return the scored outputs in `results`, by data set."""
    texts = clean(numbers).filter(pl.col("analysis") == "text", pl.col("layer").is_not_null())
    texts = texts.with_columns(panel=pl.lit(""))
    found = []
    for (data, label, output), own in texts.group_by("data", "label", "group", maintain_order=True):
        difference, foretold = pl.col("metric").str.ends_with(_DIFFERENCE), pl.col("metric").str.starts_with(_FORETOLD)
        scores = own.filter(~difference & ~foretold)
        if len(scores):
            parts = (own.filter(difference), own.filter(foretold))
            found.append(TextTask(str(data), label and str(label), str(output), scores, *parts))
    return found


def metrics(task: TextTask) -> list[str]:
    """Return every number there is of an output."""
    every = pl.concat([task.scores, task.differences, task.foretold])
    return every["metric"].unique(maintain_order=True).to_list()


def finding(task: TextTask) -> list[str]:
    """Say where each model writes best, what quantisation costs, and whether the lens knows of right answers."""
    return [*_best(task), *_costs(task), *_knows(task)]


def _best(task: TextTask) -> list[str]:
    name = measure(task.metric).name
    found = []
    for (model,), own in task.scores.filter(metric=task.metric).group_by("model", maintain_order=True):
        curve = own.drop_nulls("value").sort("layer")
        best, last = (
            curve.sort("value", descending=True, maintain_order=True).row(0, named=True),
            curve.row(-1, named=True),
        )
        said = f"{model} writes best at layer {best['layer']}: {name} {_score(best)}"
        found.append(
            said + ("." if best["layer"] == last["layer"] else f", and {_score(last)} at layer {last['layer']}.")
        )
    return found


def _costs(task: TextTask) -> list[str]:
    own = task.differences.filter(metric=f"{task.metric}{_DIFFERENCE}").sort("layer")
    lines = own.unique(["model", "other_run"], keep="last", maintain_order=True).to_dicts()
    said = "Quantisation changes " + measure(task.metric).name + " of {} by {} at layer {}{}."
    found = [said.format(one["model"], _score(one), one["layer"], _clear(one, 0)) for one in lines]
    return [
        f"{line}{_over_layers(own.filter(model=one['model'], other_run=one['other_run']))}"
        for line, one in zip(found, lines, strict=True)
    ]


def _over_layers(own: pl.DataFrame) -> str:
    """Say at how many layers an interval excludes 0: the last layer alone may hide what the others show."""
    known = own.drop_nulls(["low", "high"]).sort("layer")
    changed = known.filter((pl.col("low") > 0) | (pl.col("high") < 0))["layer"].to_list()
    where = f" ({', '.join(map(str, changed))})" if 0 < len(changed) < len(known) else ""
    return f" The interval excludes 0 at {len(changed)} of {count(len(known), 'layer')}{where}." if len(known) else ""


def _knows(task: TextTask) -> list[str]:
    own = task.foretold.filter(metric=f"{_FORETOLD}entropy").sort("value", "layer", descending=[True, False])
    lines = own.unique("model", keep="first", maintain_order=True).to_dicts()
    said = "A right answer of {} has lower entropy than a wrong one with probability {} at layer {}, where it tells most{}."
    return [said.format(one["model"], _score(one), one["layer"], _clear(one, 0.5)) for one in lines]


def _score(row: dict[str, Any]) -> str:
    return interval(row["value"], row["low"], row["high"])


def _clear(row: dict[str, Any], nothing: float) -> str:
    """Say so when an interval holds the value that means nothing."""
    unclear = row["low"] is not None and row["low"] <= nothing <= row["high"]
    return ": the interval holds " + f"{nothing:g}, no clear difference there" if unclear else ""
