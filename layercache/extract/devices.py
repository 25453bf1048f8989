"""Several devices of one machine: a process on each runs the parts it is handed, until there are none left.

    parent: plan → parts that lack something → hands the next part to whoever is free → one summary
    child:  `layercache.extract.device_worker`, one on each device: loads the model once, publishes to the store

Parts are finer than devices, so that a slow device does not hold up the others. A device whose part fails gets no
other; the rest is still done, and the same command again does what is missing.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from layercache.dataset import Dataset
from layercache.errors import ModelError
from layercache.extract import run
from layercache.extract.crew import Crew, Job
from layercache.extract.kept import Kept
from layercache.extract.summary import Done, Summary, united
from layercache.parts import Part
from layercache.progress import Once, Progress
from layercache.recipe import ExtractSpec, ModelSpec, Recipe

_FINER = 4
"""Parts a device gets, where all are equally fast."""
_ROUNDS = 2
"""What is drawn from all samples needs every prompt's answer first, and is missing once more then."""

Pairs = Sequence[tuple[Dataset, ModelSpec]]


def names(given: Sequence[str]) -> list[str]:
    """Return devices by name: `all` is every GPU.

    Raises:
        ModelError: there is no GPU.
    """
    if list(given) != ["all"]:
        return list(given)
    count = torch.cuda.device_count()
    if not count:
        raise ModelError("--devices all: there is no GPU here; use cpu, or leave it out")
    return [f"cuda:{number}" for number in range(count)]


def check(given: Sequence[str], spec: ExtractSpec) -> None:
    """Refuse devices that are not there or do not go together, before anything is started.

    Raises:
        ModelError: names the device and why.
    """
    if spec.device != "auto" or spec.device_map is not None:
        other = f"device {spec.device}" if spec.device != "auto" else f"device_map {spec.device_map}"
        raise ModelError(f"--devices and {other} exclude each other: give one of them")
    places = [_there(name) for name in names(given)]
    kinds = {place.type for place in places}
    if len(kinds) > 1:
        raise ModelError(
            f"--devices {','.join(given)}: use devices of one kind, since they differ in dtype and kernels"
        )
    twice = next((place for place in places if place.type != "cpu" and places.count(place) > 1), None)
    if twice is not None:
        raise ModelError(f"--devices {','.join(given)}: {twice} is given twice")


def _there(name: str) -> torch.device:
    try:
        place = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"device {name!r} is none: use numbers of GPUs (0,1), all, or cpu") from error
    if place.type == "cuda":
        place = torch.device("cuda", place.index or 0)
        count = torch.cuda.device_count()
        if (place.index or 0) >= count:
            raise ModelError(f"device {name} is not there: this machine has {count} GPUs")
    elif place.type == "mps" and not torch.backends.mps.is_available():
        raise ModelError(f"device {name} is not there: use cpu")
    elif place.type not in ("cpu", "mps"):
        raise ModelError(f"device {name} cannot be used: use numbers of GPUs (0,1), all, or cpu")
    return place


def extract(
    study: Recipe, pairs: Pairs, store: Path, progress: Progress, given: Sequence[str], part: Part | None = None
) -> list[Summary]:
    """Run what is missing on several devices, a process on each.

    Args:
        pairs: the study's data sets and models, as `study.pairs` gives them.
        given: the devices, checked.
        part: run only the samples of this part.

    Returns:
        A summary a pair: what all processes did.

    Raises:
        LayercacheError: a process failed; the parts of the others are published.
    """
    places = names(given)
    kept = Kept()
    models = [model for _, model in pairs]
    spec = study.extract.model_copy(update={"device": places[0]})
    done: list[list[Done]] = [[] for _ in pairs]
    lacking: list[int] | None = None
    quiet = Once(progress)
    for _ in range(_ROUNDS):
        works = [
            run.plan(model, data, spec, store, _FINER * len(places), part=part, kept=kept) for data, model in pairs
        ]
        lacking = lacking or [sum(work.samples for work in several) for several in works]
        jobs = [Job(n, work.part) for n, several in enumerate(works) for work in several if work.passes]
        if not jobs:
            break
        # Model after model, so that a process loads each once.
        jobs.sort(key=lambda job: (models.index(pairs[job.pair][1]), job.pair, job.part.index))
        total = sum(work.passes for several in works for work in several)
        title = f"extract {', '.join(dict.fromkeys(data.name for data, _ in pairs))} on {len(places)} devices"
        with quiet.task(title, total, "passes") as task, Crew(study, store, places, task, quiet) as crew:
            for job, summary in crew.run(jobs):
                done[job.pair].append(Done(summary, time.monotonic()))
    # Nothing is missing now but what parts share: rows with every answer, the head.
    last = [run.extract(model, data, spec, store, quiet, part=part, kept=kept) for data, model in pairs]
    return [
        united(whole, several, count)
        for whole, several, count in zip(last, done, lacking or [0] * len(pairs), strict=True)
    ]
