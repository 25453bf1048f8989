"""The page of a dataset repository: what it holds, how to ask it, and `configs` that let the Hub's viewer read the tables.

What the user wrote stays: their metadata (the licence above all) and the text outside the two marks.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from layercache.errors import StoreError
from layercache.hub.client import Address
from layercache.store import sequence
from layercache.store.layout import CONDITION, MANIFEST, RESULTS, ROWS, RUN, SHARD
from layercache.store.schema import TABLES
from layercache.store.sequence import SequencedFile

BEGIN = "<!-- layercache: what stands between these two marks is written by `layercache push` -->"
END = "<!-- layercache: end -->"
_OURS = re.compile(rf"{re.escape(BEGIN)}.*?{re.escape(END)}\n?", re.DOTALL)
_MARKUP = re.compile(r"([\\`*_{}\[\]<>()#+!|~&-])")


def write(
    there: str, address: Address, paths: Iterable[str], runs: dict[str, dict[str, Any]], replaced: set[str]
) -> str:
    """Return the page.

    Args:
        there: the page as it is; empty where there is none.
        address: the repository.
        paths: the files of the store that are there.
        runs: of every run, by id, what its `run.json` says.
        replaced: folders of shards that do not count any more.

    Raises:
        StoreError: the page that is there has a head that cannot be read.
    """
    from huggingface_hub import RepoCard

    paths = sorted(paths)
    # A page without metadata would be remarked on.
    try:
        old = RepoCard(there if there.lstrip().startswith("---") else f"---\n{{}}\n---\n{there}")
    except Exception as error:
        raise StoreError(
            f"{address}: the metadata of its README.md cannot be read: mend it, then push again"
        ) from error
    own = configs(paths, replaced)
    mine = {one["config_name"] for one in own}
    given: dict[str, Any] = old.data.to_dict()  # type: ignore[no-untyped-call]
    others = [one for one in given.get("configs") or [] if not (_is_ours(one) or one.get("config_name") in mine)]
    tags = given.get("tags") or []
    old.data = type(old.data)(
        **{**given, "configs": [*others, *own], "tags": [*tags, *(["layercache"] if "layercache" not in tags else [])]}
    )
    section = f"{BEGIN}\n{_section(address, paths, runs)}{END}\n"
    body = old.text if old.text.strip() else f"\n# {address.repository.partition('/')[2]}\n\n{BEGIN}{END}\n"
    old.text = _OURS.sub(lambda match: section, body) if _OURS.search(body) else f"{body.rstrip()}\n\n{section}"
    return f"{str(old).rstrip()}\n"


def configs(paths: list[str], replaced: set[str]) -> list[dict[str, Any]]:
    """Return what the Hub's viewer and `datasets.load_dataset` read: of every run and condition a config a table.

    Runs stay apart since their states differ in width. Files are found by a pattern, where it would find a shard that is
    replaced by their names.
    """
    files: dict[tuple[str, str, str], list[str]] = {}
    stale = set()
    whole = {path.rpartition("/")[0] for path in paths if path.endswith(f"/{MANIFEST}")}
    for path in paths:
        parts = path.split("/")
        if len(parts) == 4 and parts[3].removesuffix(".parquet") in TABLES and parts[3].endswith(".parquet"):
            folder = "/".join(parts[:3])
            key = (parts[0].removeprefix(RUN), parts[1].removeprefix(CONDITION), parts[3].removesuffix(".parquet"))
            if folder in replaced or folder not in whole:
                stale.add(key[:2])
            else:
                files.setdefault(key, []).append(path)
    found = [
        {
            "config_name": f"{run}.{condition}.{table}",
            "data_files": names
            if (run, condition) in stale
            else f"{RUN}{run}/{CONDITION}{condition}/{SHARD}*/{table}.parquet",
        }
        for (run, condition, table), names in sorted(files.items())
    ]
    return [*found, *_rows(paths), *_results(paths)]


def _rows(paths: list[str]) -> list[dict[str, Any]]:
    newest: dict[str, list[SequencedFile]] = {}
    for path in paths:
        parts = path.split("/")
        if len(parts) == 3 and parts[1] == ROWS and (file := sequence.parse(Path(path))) is not None:
            newest.setdefault(parts[0].removeprefix(RUN), []).append(file)
    return [
        {"config_name": f"{run}.rows.{quote(name, safe='')}", "data_files": file.path.as_posix()}
        for run, files in sorted(newest.items())
        for name, file in sorted(sequence.newest(files).items())
    ]


def _results(paths: list[str]) -> list[dict[str, Any]]:
    found = any(path.startswith(f"{RESULTS}/") and path.endswith("/results.parquet") for path in paths)
    return [{"config_name": "results", "data_files": f"{RESULTS}/*/results.parquet"}] if found else []


def _is_ours(config: Any) -> bool:
    files = config.get("data_files") if isinstance(config, dict) else None
    first = files[0] if isinstance(files, list) and files else files
    return isinstance(first, str) and first.startswith((RUN, f"{RESULTS}/"))


def _section(address: Address, paths: list[str], runs: dict[str, dict[str, Any]]) -> str:
    lines = [
        "A layercache store: what every layer of language models said about prompts, in Parquet.",
        "",
        "| run | model | layers | width | conditions | tables | shards |",
        "|---|---|---|---|---|---|---|",
    ]
    for run, value in sorted(runs.items()):
        inside = [path.split("/") for path in paths if path.startswith(f"{RUN}{run}/")]
        shards = [parts for parts in inside if parts[-1] == MANIFEST]
        conditions = sorted({parts[1].removeprefix(CONDITION) for parts in shards})
        there = {parts[-1].removesuffix(".parquet") for parts in inside if len(parts) == 4}
        layers = value.get("layers")
        cells = [
            run,
            str(value.get("model", "")),
            str(len(layers) if isinstance(layers, list) else ""),
            str(value.get("width", "")),
            ", ".join(conditions),
            ", ".join(table for table in TABLES if table in there),
            str(len(shards)),
        ]
        lines.append(f"| {' | '.join(plain(cell) for cell in cells)} |")
    where = f"hf://datasets/{address.repository}"
    lines += [
        "",
        "Layer 0 is the embedding output, k the residual stream after block k. Of `hidden`, `vector` is the state.",
        "",
        "```bash",
        "pip install 'layercache[hub]'",
        f"layercache pull {where} --store store                                  # all of it",
        f"layercache pull {where} --store store --outputs mean@prompt --layers 4,8   # two layers",
        'layercache sql "SELECT layer, count(*) FROM hidden GROUP BY layer" --store store',
        "```",
        "",
        "In DuckDB, from here and without layercache (right as long as no shard is replaced and no sample is in two):",
        "",
        "```sql",
        "SELECT run, condition, layer, count(*)",
        f"FROM read_parquet('{where}/run=*/condition=*/shard=*/hidden.parquet', hive_partitioning = true,",
        "                  union_by_name = true)",
        "GROUP BY ALL;",
        "```",
        "",
        "In Python, one of the configurations above (a table of a run under a condition):",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        f'samples = load_dataset("{address.repository}", "{_example(paths)}", split="train")',
        "```",
        "",
    ]
    return "\n".join(lines)


def _example(paths: list[str]) -> str:
    names = [one["config_name"] for one in configs(paths, set()) if one["config_name"].endswith(".samples")]
    return names[0] if names else "RUN.clean.samples"


def plain(text: str) -> str:
    """Make text that is shown as it is in a cell of a Markdown table, on one line."""
    line = "".join(char if char.isprintable() else " " for char in text)
    return _MARKUP.sub(r"\\\1", line)
