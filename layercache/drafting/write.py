"""Writes a recipe as TOML with comments. Names and cells come from anywhere, so every text is quoted and escaped."""

import json
import re
from collections.abc import Iterable, Sequence

from layercache.drafting.roles import Roles

_MODEL = """\
# A folder, a name on the Hugging Face hub, or a demo model; several in a list are run one after another."""
_DATA = """\
[data]
# As it was given: run the recipe from the same folder, or write the whole path."""
_PROMPT = """\
# The prompt of a row. Every {{field}} is a span, whose tokens can be pooled and knocked out by name."""


def text(value: str) -> str:
    """Write a TOML basic string on one line."""
    return "".join(map(_escaped, json.dumps(value, ensure_ascii=False)))


def _escaped(one: str) -> str:
    """Escape what would not be seen, or would act on a terminal: JSON leaves it as it is."""
    return one if one.isprintable() else f"\\U{ord(one):08X}"


def block(value: str) -> str:
    """Write a TOML string over as many lines as the text has; on one line where it has one."""
    if "\n" not in value:
        return text(value)
    lines = [text(line)[1:-1] for line in value.split("\n")]
    return '"""\n' + "\n".join(lines) + '"""'


def comment(value: str) -> str:
    """Write a comment: one line, whatever the text holds."""
    shown = "".join(one if one.isprintable() else " " for one in value)
    return f"# {re.sub(' +', ' ', shown).strip()}"


def strings(values: Iterable[str]) -> str:
    """Write a list of strings."""
    return f"[{', '.join(map(text, values))}]"


def recipe(
    name: str,
    source: str,
    model: str,
    roles: Roles,
    missing: Sequence[str],
    truncate: bool | None,
    trial: int | None,
    rows: int,
) -> str:
    """Write a recipe.

    Args:
        truncate: whether prompts may be longer than the model's context; None where that is not known.
        trial: how many of the first rows do for a trial; None where all are needed.
        rows: how many there are.
    """
    lines = [
        comment(f"A study of {source}, begun by `layercache init`: what it guessed stands in the comments."),
        "",
        f"name = {text(name)}",
        _MODEL,
        f"models = {strings([model])}",
        "",
        _DATA,
        f"source = {text(source)}",
        f"name = {text(name)}",
        _PROMPT.format(),
        f"template = {block(roles.template)}",
        *_labels(roles),
        *_answers(roles),
        *_optional("split", roles.split, "A column with each row's split: probes are fitted on train."),
        *_groups(roles),
        *_missing(missing),
        *_limit(trial, rows),
        "",
        *_extract(roles, truncate),
        "",
        *_analyses(roles),
    ]
    return "\n".join(lines).rstrip("\n") + "\n"


def _labels(roles: Roles) -> list[str]:
    lines = ["# What a probe is asked to read off the states: NAME:number, category, boolean or text."]
    lines.append(f"labels = {strings(roles.labels)}" if roles.labels else '# labels = ["NAME:number"]')
    if roles.other_labels:
        lines.append(comment(f"Perhaps too: {strings(roles.other_labels)}"))
    if roles.with_commas:
        named = strings(f"{name}:number" for name in roles.with_commas)
        lines.append(comment(f"Numbers with a decimal comma are not read: write points in the file, then add {named}"))
    if roles.told_labels:
        lines.append(comment(f"Left out, since words of the question tell it: {strings(roles.told_labels)}"))
    return lines


def _answers(roles: Roles) -> list[str]:
    if not roles.answers:
        return []
    return [
        "# The accepted answers; the lens follows the first token of the target, layer by layer.",
        f"answers = {strings(roles.answers)}",
        f"target = {text(roles.answers[0])}",
    ]


def _optional(key: str, value: str | None, why: str) -> list[str]:
    return [] if value is None else [f"# {why}", f"{key} = {text(value)}"]


def _groups(roles: Roles) -> list[str]:
    lines = _optional("group_by", roles.group_by, "Rows that share a value here are never split between folds.")
    if roles.other_groups:
        why = "Perhaps instead" if roles.group_by else "Rows that share a value here would never straddle a fold"
        lines.append(comment(f"{why}: group_by = {' or '.join(text(name) for name in roles.other_groups[:3])}"))
    return lines


def _limit(trial: int | None, rows: int) -> list[str]:
    if trial is None:
        return [
            "# The first rows have one class of a label only: `limit = N`, which takes those, leaves nothing to probe."
        ]
    return [f"# limit = {trial:<25} # only the first rows, to try it out"] if trial < rows else []


def _missing(cells: Sequence[str]) -> list[str]:
    return [f"missing = {strings(cells)}   # cells that mean no value, beside the empty one"] if cells else []


def _extract(roles: Roles, truncate: bool | None) -> list[str]:
    lines = [
        "[extract]",
        f"# States: the mean over all tokens, and the last one; of a span: {comment('last@' + (roles.fields or ['prompt'])[-1])[2:]}",
        'pooling = ["mean", "last"]',
        "# The logit lens at the last token: what every layer would say next. [] for none.",
        'lens = ["last"]',
    ]
    if roles.choices:
        lines += [
            "# Answers that are scored at every layer, as they would follow the prompt.",
            f"choices = {strings(roles.choices)}",
        ]
    said = "cut prompts that are longer than the model's context"
    lines.append(
        "# Some prompts may be longer than the model's context: cut them."
        if truncate
        else "# " + said.capitalize() + ":"
    )
    lines.append("truncate = true" if truncate else "# truncate = true")
    if roles.answers:
        lines.append("# Let the model answer; the label `correct` then says whether it was right (without choices):")
        lines.append("# generate_answer = true")
    return lines


def _analyses(roles: Roles) -> list[str]:
    lines = []
    if roles.labels:
        lines.append("# Which layer knows the labels?")
        if not roles.probed:
            lines.append("# Too few rows for a probe as yet: with some hundred, take the comment signs away.")
        lines += [("" if roles.probed else "# ") + line for line in ("[[analyze]]", 'kind = "probe"')]
        lines.append("")
    if roles.choices:
        lines += ["# Which answer does every layer prefer?", "[[analyze]]", 'kind = "choices"', ""]
    return [*lines, "# How sure is every layer of the next token?", "[[analyze]]", 'kind = "entropy"']
