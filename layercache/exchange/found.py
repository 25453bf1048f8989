"""States that somebody already has, found in files: an export of ours, arrays [n, d] or [n, layers, d], or what vLLM
writes (`extract_hidden_states` with its example connector: a safetensors file a request, with `hidden_states`
[tokens, layers, d] and `token_ids` [tokens]; layer id k is there, as here, the residual stream after k blocks, and
the layers are in ascending order whatever the order they were asked for in)."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from layercache import outputs
from layercache.errors import DataError
from layercache.exchange import names, tensors
from layercache.exchange.exporting import ABOUT
from layercache.exchange.names import Place
from layercache.exchange.tensors import Array

_IDS = ("ids", "id", "sample_ids", "sample_id")
_VLLM = {"hidden_states", "token_ids"}
_POOLED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "last": lambda tokens: tokens[-1],
    "first": lambda tokens: tokens[0],
    "mean+special": lambda tokens: tokens.mean(axis=0, dtype=np.float64),
}
"""How a prompt's tokens become one state where all of them are there; which are special is not known."""


@dataclass(frozen=True)
class Asked:
    """What the user says of the files; None where the files say it themselves."""

    layers: Sequence[int] | None = None
    pooling: str | None = None
    site: str = "resid"
    key: str | None = None
    """The array that holds the states, where there are several."""


@dataclass(frozen=True)
class Found:
    """States in files: `n` lines, each with one state at every place."""

    files: list[Path]
    n: int
    width: int
    places: list[Place]
    read: Callable[[int, int], list[np.ndarray]]
    """Returns of lines [start, stop) one float32 [stop - start, d] a place."""
    ids: list[str] | None = None
    """What every line is called, where the files say."""
    tokens: list[list[int]] | None = None
    """Token ids of every line, where the files say."""
    about: dict[str, Any] | None = None
    """What an export of ours says of its run and its rows."""
    rows: pl.DataFrame | None = None


def find(paths: Sequence[Path], asked: Asked) -> Found:
    """Look at files or a folder of files, and say what states they hold; the states are not read yet.

    Raises:
        DataError: nothing is there, it is damaged, or it is not clear what is what.
    """
    files = [file for path in paths for file in _files(path)]
    if len(paths) == 1 and (paths[0] / ABOUT).is_file():
        return _export(paths[0], files, asked)
    if not files:
        raise DataError(f"{paths[0]} holds no {', '.join(tensors.SUFFIXES)} files")
    opened = {file: tensors.read_arrays(file) for file in files}
    if all(set(arrays) >= _VLLM for arrays in opened.values()):
        return _vllm(opened, asked)
    arrays = [array for found in opened.values() for array in found.values()]
    places = _places(arrays, asked)
    return _stacked(files, places, _ids(arrays))


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = [file for file in path.iterdir() if file.suffix in tensors.SUFFIXES]
        return sorted(found, key=lambda file: _natural(file.name))
    if not path.exists():
        raise DataError(f"no file {path}")
    return [path]


def _natural(name: str) -> list[tuple[int, str]]:
    """Order names as people do: 2 before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def _export(folder: Path, files: list[Path], asked: Asked) -> Found:
    """Read an export of ours, which says everything itself."""
    rows = folder / "rows.parquet"
    try:
        about = json.loads((folder / ABOUT).read_bytes())
        known = {name: names.parse(name) for name in about["arrays"]}
        frame = pl.read_parquet(rows, glob=False)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, pl.exceptions.PolarsError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{folder} cannot be imported ({said}): export it as npz, npy or safetensors") from error
    arrays = {array.name: array for file in files for array in tensors.read_arrays(file).values()}
    lacking = [name for name in known if known[name] is None or name not in arrays]
    if lacking or not known:
        raise DataError(
            f"{folder} lacks the array {', '.join(lacking[:1])}: export it again as npz, npy or safetensors"
        )
    places: dict[Place, tuple[Array, int | None]] = {
        place: (arrays[name], None)
        for name, place in known.items()
        if place is not None and place.layer in (asked.layers or [place.layer])
    }
    found = _stacked(files, places, frame["sample_id"].to_list())
    if len(frame) != found.n:
        raise DataError(f"{rows} has {len(frame)} rows, the arrays {found.n}: export it again")
    return Found(files, found.n, found.width, found.places, found.read, found.ids, None, about, frame)


def _places(arrays: Sequence[Array], asked: Asked) -> dict[Place, tuple[Array, int | None]]:
    """Say which array (and which of its layers) holds which states."""
    states = [array for array in arrays if array.is_float and len(array.shape) in (2, 3)]
    if asked.key is not None:
        states = [array for array in states if array.name == asked.key]
    listing = ", ".join(f"{array.name} {list(array.shape)}" for array in arrays[:8]) or "none"
    if not states:
        raise DataError(f"no array of states [n, d] or [n, layers, d]: there are {listing}")
    named = {names.parse(array.name): (array, None) for array in states}
    if None not in named:
        return {place: one for place, one in named.items() if place and place.layer in (asked.layers or [place.layer])}
    if len(states) == 1:
        return _one_array(states[0], asked)
    numbers = [names.layer_of(array.name) if len(array.shape) == 2 else None for array in states]
    if None in numbers or len(set(numbers)) < len(numbers):
        raise DataError(f"which array holds the states? choose one with --key: {listing}")
    made = {Place(asked.site, pooling(asked), int(n or 0)): (one, None) for n, one in zip(numbers, states)}
    return {place: one for place, one in made.items() if place.layer in (asked.layers or [place.layer])}


def _one_array(array: Array, asked: Asked) -> dict[Place, tuple[Array, int | None]]:
    n_layers = array.shape[1] if len(array.shape) == 3 else 1
    layers = _numbered(n_layers, asked, array.path)
    if len(array.shape) == 2:
        return {Place(asked.site, pooling(asked), layers[0]): (array, None)}
    return {Place(asked.site, pooling(asked), layer): (array, index) for index, layer in enumerate(layers)}


def _numbered(n_layers: int, asked: Asked, path: Path) -> Sequence[int]:
    if asked.layers is None:
        raise DataError(f"{path} does not say which layers it holds: number its {n_layers} with --layers 0,4,8")
    if len(asked.layers) != n_layers or len(set(asked.layers)) != n_layers:
        raise DataError(
            f"{path} holds {n_layers} layers, --layers numbers {len(set(asked.layers))}: give one number each"
        )
    return asked.layers


def pooling(asked: Asked) -> str:
    """Return the pooling the user says, over the whole prompt unless said otherwise.

    Raises:
        DataError: none is given.
        RecipeError: it is not one.
    """
    if asked.pooling is None:
        raise DataError("say how a prompt's tokens became one state: --pooling last, mean, …")
    how, _, span = asked.pooling.partition("@")
    if how == "mean+special":
        return f"{how}@{span or outputs.WHOLE_PROMPT}"
    return str(outputs.parse_pooling(asked.pooling))


def _stacked(files: list[Path], places: dict[Place, tuple[Array, int | None]], ids: list[str] | None) -> Found:
    if not places:
        raise DataError("none of the layers asked for is in the files")
    shapes = {(array.shape[0], array.shape[-1]) for array, _ in places.values()}
    if len(shapes) != 1:
        raise DataError(f"the arrays differ in size: {', '.join(str(list(shape)) for shape in sorted(shapes))}")
    ((n, width),) = shapes
    if not n or not width:
        raise DataError(f"the arrays are empty: [{n}, {width}]")
    if ids is not None and len(ids) != n:
        raise DataError(f"the files name {len(ids)} lines and hold the states of {n}")
    order = sorted(places, key=lambda place: (place.site, place.pooling, place.layer))

    def read(start: int, stop: int) -> list[np.ndarray]:
        lines = slice(start, stop)
        return [
            array.float32(lines if index is None else (lines, index)) for array, index in map(places.__getitem__, order)
        ]

    return Found(files, n, width, order, read, ids)


def _ids(arrays: Sequence[Array]) -> list[str] | None:
    for name in _IDS:
        for array in arrays:
            if array.name == name and len(array.shape) == 1 and array.values.dtype.kind in "iuU":
                return [str(value) for value in array.values.tolist()]
    return None


def _vllm(opened: dict[Path, dict[str, Array]], asked: Asked) -> Found:
    """Read vLLM's files, one a prompt; a line is called as its file is."""
    how, _, span = pooling(asked).partition("@")
    if how not in _POOLED or span != outputs.WHOLE_PROMPT:
        raise DataError(f"of vLLM's files every token is pooled, special ones too: --pooling {', '.join(_POOLED)}")
    shapes = {}
    for path, arrays in opened.items():
        states, tokens = arrays["hidden_states"], arrays["token_ids"]
        if (
            len(states.shape) != 3
            or len(tokens.shape) != 1
            or states.shape[0] != tokens.shape[0]
            or not tokens.shape[0]
        ):
            raise DataError(f"{path}: hidden_states {list(states.shape)} are not [tokens, layers, d] of token_ids")
        shapes[path] = states.shape[1:]
    first, *others = opened
    odd = next((path for path in others if shapes[path] != shapes[first]), None)
    if odd is not None:
        raise DataError(f"{odd} holds {list(shapes[odd])} layers and elements, {first.name} {list(shapes[first])}")
    n_layers, width = shapes[first]
    places = [Place(asked.site, f"{how}@{span}", layer) for layer in sorted(_numbered(n_layers, asked, first))]
    files = list(opened)

    def read(start: int, stop: int) -> list[np.ndarray]:
        pooled = [_POOLED[how](opened[path]["hidden_states"].float32(slice(None))) for path in files[start:stop]]
        by_line = np.stack(pooled).astype(np.float32)
        return [np.ascontiguousarray(by_line[:, index]) for index in range(n_layers)]

    token_ids = [[int(one) for one in arrays["token_ids"].values] for arrays in opened.values()]
    return Found(files, len(files), width, places, read, [path.stem for path in files], token_ids)
