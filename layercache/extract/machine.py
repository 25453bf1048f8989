"""The devices of this machine, and whether a model would load on them: what `layercache doctor` asks of torch."""

from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub import snapshot_download

from layercache import content
from layercache.errors import ModelError
from layercache.extract import checkpoint, estimate
from layercache.extract import model as models
from layercache.quantities import in_words

ROOM = 1.2
"""Free memory must exceed the weights by this: beside them there are a batch's states and the lens' logits."""


def devices() -> list[dict[str, Any]]:
    """List the devices, the one that `auto` takes first: name, memory in bytes, the dtype a checkpoint is run in."""
    own = "the checkpoint's"
    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        found.append(_device(f"cuda:{index}", name, total, free, own))
    if torch.backends.mps.is_available():
        found.append(_device("mps", "Apple GPU", psutil.virtual_memory().total, psutil.virtual_memory().available, own))
    memory = psutil.virtual_memory()
    return [*found, _device("cpu", f"{torch.get_num_threads()} threads", memory.total, memory.available, "float32")]


def _device(device: str, name: str, total: int, free: int, dtype: str) -> dict[str, Any]:
    return {"device": device, "name": name, "memory_bytes": total, "free_bytes": free, "auto_dtype": dtype}


def caches() -> dict[str, Path]:
    """Return where models of the hub, and hashes of weights, are kept."""
    from huggingface_hub import constants

    return {"models of the hub": Path(constants.HF_HUB_CACHE), "hashes of weights": content.cache_file()}


def would_load(name: str) -> dict[str, Any]:
    """Say whether a model would load: its configuration and the weights' headers are read, and a skeleton is built.

    Returns:
        `model`, `loads`, `problem` (None where it loads), and as far as they are known `folder`, `class`, `layers`,
        `width`, `device`, `dtype`, `weight_bytes` (in that dtype), `free_bytes` of the device.
    """
    told: dict[str, Any] = {"model": name, "loads": False, "problem": None}
    try:
        found = checkpoint.find(_here(name))
        plan = models.plan(found, device="auto", dtype="auto", attn="auto")
    except ModelError as error:
        return {**told, "problem": str(error)}
    needed = estimate.weight_bytes(plan)
    free = next(one["free_bytes"] for one in devices() if one["device"].startswith(plan.device.type))
    told |= {"folder": found.folder, "class": found.architecture or found.auto_class}
    told |= {"layers": plan.structure.n_layers, "width": plan.structure.width, "context": plan.context}
    told |= {"device": str(plan.device), "dtype": plan.dtype_name, "weight_bytes": needed, "free_bytes": free}
    if needed * ROOM > free:
        told["problem"] = (
            f"its weights take {in_words(needed)} in {plan.dtype_name} and {plan.device} has {in_words(free)} free:"
            " use --dtype bfloat16, --quantize int8, or --device-map auto where there are several GPUs"
        )
    return {**told, "loads": told["problem"] is None}


def _here(name: str) -> str:
    """Return a model's name, or the folder where the hub's cache has it; nothing is fetched.

    Raises:
        ModelError: it is neither here nor in the cache.
    """
    if name == "demo" or name.startswith(("demo:", ".", "/", "~")) or Path(name).exists() or name.count("/") > 1:
        return name
    try:
        return snapshot_download(name, local_files_only=True)
    except Exception as error:  # the hub's library has an exception for every reason, all of which mean this
        raise ModelError(
            f"model {name}: there is no such folder, and the hub's cache does not have it (hf download {name} fetches it)"
        ) from error
