"""What `layercache doctor` finds: versions, extras, devices, a model, the store, caches, settings.

Everything is looked at and nothing is changed or downloaded. It works in an install without torch, and says so.
"""

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from layercache import __version__, quantities
from layercache.errors import LayercacheError
from layercache.shell import state_folder

CORE = (
    *("altair", "click", "duckdb", "numpy", "polars", "pyarrow", "pydantic", "rich", "safetensors", "scikit-learn"),
    *("scipy", "threadpoolctl", "vl-convert-python"),
)
EXTRAS = {
    "extract": ("accelerate", "bitsandbytes", "peft", "psutil", "torch", "transformers"),
    "text": ("bert-score", "evaluate", "rouge-score", "sacrebleu"),
    "finetune": ("trl",),
    "ray": ("ray",),
    "s3": ("fsspec", "obstore"),
    "hub": ("datasets", "huggingface_hub"),
}
"""Packages by the extra that installs them, as pyproject.toml has them; a test holds the two together."""
SETTINGS = ("HF_HOME", "HF_HUB_OFFLINE", "HF_TOKEN", "XDG_CACHE_HOME", "XDG_STATE_HOME", "OMP_NUM_THREADS", "NO_COLOR")
"""Variables of others that change what happens, beside every LAYERCACHE_…."""
_SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD")


def examine(store: Path, model: str | None = None) -> dict[str, Any]:
    """Look at everything; sizes are in bytes.

    Args:
        model: also say whether it would load (`model.loads`, and if not `model.problem`).
    """
    found: dict[str, Any] = {
        "layercache": {"version": __version__, "python": platform.python_version(), "system": platform.platform()},
        "packages": {name: _version(name) for name in CORE},
        "extras": {extra: _extra(extra) for extra in EXTRAS},
    }
    found |= _machine(model)
    found["store"] = _store(store)
    found["caches"]["sql history"] = state_folder()
    found["environment"] = _environment()
    return found


def told(found: dict[str, Any]) -> dict[str, Any]:
    """Write what was found for people: sizes with units, and what is missing with the line that installs it."""
    words: dict[str, Any] = {key: value for key, value in found.items() if key != "extraction"}
    words["packages"] = {name: version or "not installed" for name, version in found["packages"].items()}
    words["extras"] = {extra: _extra_told(one) for extra, one in found["extras"].items()}
    words["devices"] = {one["device"]: _device_told(one) for one in found["devices"]} or found["extraction"]
    for place in ("store", "model"):
        if place in found:
            words[place] = {key.removesuffix("_bytes"): _sized(key, one) for key, one in found[place].items()}
    return words


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _extra(extra: str) -> dict[str, Any]:
    versions = {name: _version(name) for name in EXTRAS[extra]}
    missing = [name for name, version in versions.items() if version is None]
    return {
        "versions": versions,
        "missing": missing,
        "install": f"pip install 'layercache[{extra}]'" if missing else None,
    }


def _extra_told(one: dict[str, Any]) -> str:
    there = ", ".join(f"{name} {version}" for name, version in one["versions"].items() if version)
    if not one["missing"]:
        return there
    return f"{there + '; ' if there else ''}missing {', '.join(one['missing'])}: {one['install']}"


def _machine(model: str | None) -> dict[str, Any]:
    """Ask torch for devices, and whether a model would load; without torch, say what is not there."""
    missing = "extraction is not installed: pip install 'layercache[extract]'"
    found: dict[str, Any] = {"extraction": None, "devices": [], "caches": {}}
    try:
        from layercache.extract import machine
    except ImportError as error:
        found["extraction"] = missing if error.name in EXTRAS["extract"] else f"extraction cannot be imported: {error}"
        if model is not None:
            found["model"] = {"model": model, "loads": False, "problem": found["extraction"]}
        return found
    found |= {"devices": machine.devices(), "caches": machine.caches()}
    if model is not None:
        found["model"] = machine.would_load(model)
    return found


def _device_told(one: dict[str, Any]) -> str:
    sizes = f"{quantities.in_words(one['free_bytes'])} of {quantities.in_words(one['memory_bytes'])} free"
    return f"{one['name']}, {sizes}, --dtype auto is {one['auto_dtype']}"


def _store(path: Path) -> dict[str, Any]:
    """Say what is at a store's place, what state it is in and how much room it has."""
    found: dict[str, Any] = {"path": path, "exists": path.exists()}
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    found |= {"free_bytes": shutil.disk_usage(folder).free, "writable": os.access(folder, os.W_OK)}
    if not path.exists():
        return found
    from layercache.store import names, reader, schema

    try:
        opened = reader.open(path)
        runs = opened.runs()
    except LayercacheError as error:
        return {**found, "problem": str(error)}
    found |= {"format": schema.FORMAT, "frozen": opened.frozen, "runs": len(runs)}
    return {**found, "shards": names.count_shards(path)}


def _environment() -> dict[str, str]:
    """Return the variables that change what happens; of secrets only that they are set."""
    names = sorted(name for name in os.environ if name.startswith("LAYERCACHE_") or name in SETTINGS)
    return {name: "set" if any(part in name for part in _SECRET) else os.environ[name] for name in names}


def _sized(key: str, value: Any) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return quantities.in_words(value) if key.endswith("_bytes") else value
