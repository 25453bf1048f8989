"""What pages take for granted, made small: data files with the columns of the real ones, models of the names they give.

Rows are those of the demo's own data sets, under the columns that a file of that name has; models have the demo's tokenizer
and random weights. Each maker writes into the folder that a page's commands run in, under the name that the page uses.
"""

import csv
import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from page_reading import ROOT, blocks

from layercache import demo
from layercache.dataset import load
from layercache.recipe import DataSpec

ROWS = 60
Rows = list[dict[str, Any]]


def _rows(name: str, count: int = ROWS) -> Rows:
    return load(DataSpec(source=f"demo:{name}", limit=count)).frame.to_dicts()


def _csv(path: Path, rows: Rows) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _json(path: Path, rows: Rows) -> None:
    """Write a JSON array, or a JSON line a row."""
    lines = [json.dumps(row) for row in rows]
    path.write_text(f"[{', '.join(lines)}]" if path.suffix == ".json" else "\n".join(lines) + "\n")


def films() -> Rows:
    """A table of films as a user may have one."""
    names = ("year", "genre", "director", "certificate", "rating", "description")
    return [{"title": row["movie_name"], **{name: row[name] for name in names}} for row in _rows("movies")]


def movies() -> Rows:
    """The fourteen columns of the IMDB by-genre files, with empty cells and cells of several lines."""
    found = []
    for number, row in enumerate(_rows("movies")):
        found.append(
            {
                "movie_id": f"tt{number:07d}",
                **{name: row[name] for name in ("movie_name", "year", "certificate")},
                **{"runtime": f"{80 + number} min", "genre": f"Animation, {row['genre']}"},
                **{"rating": "" if number % 20 == 7 else row["rating"], "description": row["description"]},
                **{"director": f"{row['director']}, \nAnna Ruso", "director_id": f"/name/nm{number:07d}/"},
                **{"star": "Leo Marin, \nIda Belo", "star_id": "/name/nm1/,/name/nm2/"},
                **{"votes": float(100 * number), "gross(in $)": "" if number % 3 else 1e6 + number},
            }
        )
    return found


def _boolq() -> Rows:
    return [{name: row[name] for name in ("question", "answer", "passage")} for row in _rows("boolq")]


def _popqa() -> Rows:
    found = []
    for number, row in enumerate(_rows("qa")):
        about = {"subj": row["subject"], "prop": row["kind"], "obj": row["golden_answers"][0]}
        about |= {"s_pop": row["popularity"] + 1, "o_pop": number}
        ask = {"id": f"test_{number}", "question": row["question"]}
        found.append({**ask, "metadata": about, "golden_answers": row["golden_answers"]})
    return found


def _questions(answer: str, *, kind: str | None = None, one: bool = False) -> Rows:
    found = []
    for number, row in enumerate(_rows("qa")):
        more = {} if kind is None else {kind: ("bridge", "comparison")[number % 2]}
        accepted = row["golden_answers"]
        found.append({"question": row["question"], answer: accepted[0] if one else accepted, **more})
    return found


def _instructions() -> Rows:
    found = _rows("instructions", 12)
    return [{"instruction": row["instruction"], "input": "", "output": row["reference"]} for row in found]


def _states(path: Path) -> None:
    """States of the films at layers 0, 8 and 16, as somebody else may have kept them: [rows, layers, width]."""
    import numpy as np

    np.save(path, np.random.default_rng(0).standard_normal((ROWS, 3, 16)).astype(np.float32))


def _model(path: Path, kind: str, **sizes: int) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo.model_path())
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **special, **sizes)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tokenizer.save_pretrained(path)


_LLAMA = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
_gpt2 = partial(_model, kind="gpt2", n_embd=16, n_layer=2, n_head=2, n_positions=1024)
_small_llama = partial(_model, kind="llama", num_hidden_layers=2, max_position_embeddings=1024, **_LLAMA)
_llama = partial(_model, kind="llama", num_hidden_layers=16, max_position_embeddings=1024, **_LLAMA)
"""As many blocks as Llama-3.2-1B has."""


def _folder_of_questions(path: Path) -> None:
    path.mkdir()
    for name in ("popqa.jsonl", "triviaqa.jsonl", "nq_open.jsonl", "hotpotqa.json"):
        FILES[name](path / name)


def _documents(path: Path) -> None:
    shutil.copytree(ROOT / "docs", path)


def own_recipe(page: str, path: Path) -> None:
    """Write the recipe that the page shows."""
    (recipe,) = [block.text for block in blocks((ROOT / page).read_text()) if block.language == "toml"]
    path.write_text(recipe)


FILES: dict[str, Callable[[Path], None]] = {
    "films.csv": lambda path: _csv(path, films()),
    "movies.csv": lambda path: _csv(path, movies()),
    "action.csv": lambda path: _csv(path, movies()),
    "boolq.jsonl": lambda path: _json(path, _boolq()),
    "popqa.jsonl": lambda path: _json(path, _popqa()),
    "triviaqa.jsonl": lambda path: _json(path, _questions("golden_answers")),
    "nq_open.jsonl": lambda path: _json(path, _questions("answer")),
    "hotpotqa.json": lambda path: _json(path, _questions("answer", kind="type", one=True)),
    "instructions.jsonl": lambda path: _json(path, _instructions()),
    "states.npy": _states,
    "FOLDER": _folder_of_questions,
    "docs": _documents,
    "gpt2": _gpt2,
    "my-llama": _small_llama,
    "MODEL": _small_llama,
    "llama": _small_llama,
    "meta-llama/Llama-3.2-1B": _llama,
}
"""By the name that pages call it."""


def clone(folder: Path) -> None:
    """Make a folder look like a fresh clone after `make demo`, as far as commands of pages go."""
    for name in ("store", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    activate = folder / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.touch()
    encoder = Path(sys.prefix) / "all-MiniLM-L6-v2"
    if encoder.exists():
        (folder / ".venv" / encoder.name).symlink_to(encoder.resolve())
