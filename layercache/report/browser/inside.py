"""What the page holds of a sample in one run: tokens and spans, lenses, the lens at every token, every layer's text."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from layercache.outputs import WHOLE_PROMPT
from layercache.report import samples
from layercache.report.browser import encode
from layercache.report.browser.encode import Tables
from layercache.report.text import plain
from layercache.store.layout import Run
from layercache.store.reader import Store
from layercache.store.stored import StoredLens

MOST_TOKENS, MOST_COLUMNS, MOST_LENSES = 512, 32, 3
"""Tokens of a prompt that are shown, tokens of the lens at every token (the last ones of both), and lenses of one token."""
_CONTINUES = "##"


class Held(NamedTuple):
    """What a run holds that a sample can show: lenses of one token, that of every token, texts as output → layers."""

    lenses: list[StoredLens]
    grid: StoredLens | None
    texts: dict[str, list[int]]

    def json(self) -> dict[str, Any]:
        """Return what the page says once for all samples of the run."""
        grid = None if self.grid is None else {"at": plain(self.grid.position_name), "layers": self.grid.layers}
        return {
            "lenses": [{"at": plain(lens.position_name), "layers": lens.layers} for lens in self.lenses],
            "grid": grid,
            "texts": [{"output": plain(output), "layers": layers} for output, layers in self.texts.items()],
        }


class Frames(NamedTuple):
    """The rows of a run's tables, by sample id; of lenses and texts a table for each that is held."""

    samples: dict[str, dict[str, Any]]
    tokens: dict[str, pl.DataFrame]
    lenses: list[dict[str, pl.DataFrame]]
    grid: dict[str, pl.DataFrame]
    texts: list[dict[str, pl.DataFrame]]


def held(store: Store, run: Run, answered: bool) -> Held:
    """List what a run holds.

    Args:
        store: the store.
        run: the run.
        answered: its samples are prompts with the answers that it generated, which need no panel of their own.
    """
    single: dict[str, StoredLens] = {}
    for lens in sorted(samples.lenses(store, run), key=samples.preference, reverse=True):
        single.setdefault(lens.position_name, lens)
    grids = samples.grids(store, run)
    grid = max(grids, key=lambda lens: (lens.position_name == f"token@{WHOLE_PROMPT}", lens.output), default=None)
    texts: dict[str, set[int]] = {}
    for shard in store.shards(run):
        for output, layers in shard.outputs.items():
            if output.startswith("generation:"):
                texts.setdefault(output, set()).update(layers or [])
    shown = {output: sorted(layers) for output, layers in sorted(texts.items()) if len(layers) > answered}
    return Held(list(single.values())[:MOST_LENSES], grid, shown)


def read(
    store: Store,
    run: Run,
    what: Held,
    listed: Iterable[str | None],
    whole: Iterable[str | None],
    written: Iterable[str | None],
    n_tokens: int,
) -> Frames:
    """Read a run's tables: tokens of the samples `listed`, lenses of those shown whole, texts of those `written`."""
    every, few, texts = ([one for one in dict.fromkeys(ids) if one is not None] for ids in (listed, whole, written))

    def lens(one: StoredLens, most: int) -> dict[str, pl.DataFrame]:
        return _by_sample(store, "report_browser_lens", few, run=run.id, output=one.output, most=most)

    known = store.samples(run).filter(pl.col("sample_id").is_in(every))
    return Frames(
        {row["sample_id"]: row for row in known.to_dicts()},
        _by_sample(store, "report_browser_tokens", every, run=run.id),
        [lens(one, n_tokens) for one in what.lenses],
        lens(what.grid, 1) if what.grid else {},
        [_by_sample(store, "report_browser_texts", texts, run=run.id, output=one) for one in what.texts],
    )


def prompt_json(frames: Frames, sample: str, tables: Tables) -> dict[str, Any]:
    """Return a sample's tokens, spans and what is absent, as the page holds them.

    `tokens` are places in the table of tokens (empty where no tokens are stored), the first of them being at position
    `first`; `prompt` is the text where there are none. `spans` are [name, start, end), `absent` [output, reason].
    """
    one, tokens = frames.samples[sample], frames.tokens.get(sample)
    found: dict[str, Any] = {"n": one["n_tokens"]}
    if tokens is None:
        found["prompt"] = tables.text(one["prompt"], None)
    else:
        texts = spaced(one["prompt"], tokens["text"].to_list())
        numbers = [tables.token(text, number) for text, number in zip(texts, tokens["token_id"], strict=True)]
        found |= {"first": max(0, len(numbers) - MOST_TOKENS), "tokens": numbers[-MOST_TOKENS:]}
    found["spans"] = [[tables.text(span["name"]), span["start"], span["end"]] for span in one["spans"]]
    absent = sorted({(gone["output"], gone["reason"]) for gone in one["absent"]})
    if absent:
        found["absent"] = [[tables.text(output), tables.text(reason)] for output, reason in absent]
    if one["n_truncated"]:
        found["truncated"] = one["n_truncated"]
    return found


def panels_json(what: Held, frames: Frames, sample: str, written: str | None, tables: Tables) -> dict[str, Any]:
    """Return a sample's lenses and texts; what is not stored of it is left out."""
    lenses = [_lens(one, own.get(sample), tables) for one, own in zip(what.lenses, frames.lenses, strict=True)]
    grid = _grid(what.grid, frames.grid.get(sample), tables) if what.grid else None
    texts = [
        _texts(layers, own.get(written or ""), tables)
        for layers, own in zip(what.texts.values(), frames.texts, strict=True)
    ]
    found = {"lens": lenses if any(lenses) else None, "grid": grid, "texts": texts if any(texts) else None}
    return {name: value for name, value in found.items() if value}


def spaced(prompt: str, tokens: Sequence[str | None]) -> list[str]:
    """Return tokens with the white space of the prompt that decoding each alone has lost.

    Tokens that do not stand in the prompt where they should (special ones, bytes of a character) stay as they are.
    """
    at, found = 0, []
    for text in (text or "" for text in tokens):
        bare = text.strip().removeprefix(_CONTINUES)
        skipped = at + len(prompt[at:]) - len(prompt[at:].lstrip())
        if text and prompt.startswith(text, at):
            found.append(text)
            at += len(text)
        elif bare and prompt[skipped : skipped + len(bare)].lower() == bare.lower():
            found.append(prompt[at:skipped] + bare)
            at = skipped + len(bare)
        else:
            found.append(text)
    return found


def _by_sample(store: Store, query: str, ids: list[str], **values: object) -> dict[str, pl.DataFrame]:
    if not ids:
        return {}
    found = samples.query(store, query, samples=ids, **values)
    parts = found.partition_by("sample_id", as_dict=True, maintain_order=True)
    return {str(key[0]): part for key, part in parts.items()}


def _lens(lens: StoredLens, own: pl.DataFrame | None, tables: Tables) -> dict[str, Any] | None:
    """Return, by layer, the most probable tokens `top` and their probabilities `p`, the entropy `h` and the target."""
    if own is None:
        return None
    rows: Mapping[int, dict[str, Any]] = {row["layer"]: row for row in own.to_dicts()}
    found: dict[str, Any] = {"position": own["position"][0], "top": [], "p": []}
    for layer in lens.layers:
        row = rows.get(layer)
        found["top"].append(_tokens(row, tables) if row else [])
        found["p"].append(encode.probabilities(np.exp(np.array(row["logprobs"]))) if row else [])
    found["h"] = encode.hundredths(_by_layer(rows, lens.layers, "entropy"))
    targets = {row["target_id"] for row in rows.values()} - {None}
    if len(targets) == 1:
        known = {number: text for row in rows.values() for number, text in zip(row["ids"], row["texts"], strict=True)}
        target = targets.pop()
        found["target"] = tables.token(known.get(target), target)
        found["target_p"] = encode.probabilities(np.exp(_by_layer(rows, lens.layers, "target_logprob")))
        found["target_rank"] = encode.integers(_by_layer(rows, lens.layers, "target_rank"))
    return found


def _grid(lens: StoredLens, own: pl.DataFrame | None, tables: Tables) -> dict[str, Any] | None:
    """Return `positions`, and by layer and position the most probable token, its probability and the entropy."""
    if own is None:
        return None
    positions = sorted(set(own["position"].to_list()))[-MOST_COLUMNS:]
    shape = len(lens.layers), len(positions)
    top: list[list[int | None]] = [[None] * shape[1] for _ in lens.layers]
    p, h = np.full(shape, np.nan), np.full(shape, np.nan)
    down = {layer: place for place, layer in enumerate(lens.layers)}
    across = {position: place for place, position in enumerate(positions)}
    for row in own.filter(pl.col("position").is_in(positions)).iter_rows(named=True):
        at = down[row["layer"]], across[row["position"]]
        top[at[0]][at[1]] = _tokens(row, tables)[0]
        p[at], h[at] = np.exp(row["logprobs"][0]), row["entropy"]
    return {"positions": positions, "top": top, "p": encode.probabilities(p), "h": encode.hundredths(h)}


def _texts(layers: list[int], own: pl.DataFrame | None, tables: Tables) -> list[int | None] | None:
    if own is None:
        return None
    said = dict(own.select("layer", "text").iter_rows())
    return [tables.text(said.get(layer)) for layer in layers]


def _tokens(row: Mapping[str, Any], tables: Tables) -> list[int]:
    return [tables.token(text, number) for text, number in zip(row["texts"], row["ids"], strict=True)]


def _by_layer(rows: Mapping[int, Mapping[str, Any]], layers: list[int], column: str) -> encode.Floats:
    values = [rows[layer][column] if layer in rows else None for layer in layers]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
