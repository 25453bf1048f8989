"""Which training step a model is of, by its name: `pythia-70m-step512`, `my-run-checkpoint-500`."""

import re

from layercache.demo import TRAINING_STEPS

_STEP = re.compile(
    r"^(?P<series>.*?)[-_.@]?(?:global_)?(?:step|checkpoint|ckpt|iter)[-_]?(?P<step>\d+)(?:-tokens\w+)?(?P<rest>.*)$"
)


def training_step(model: str) -> tuple[str, int] | None:
    """Return the training run a model belongs to and its step; None where the name says no step.

    What follows the step (`-int8`, `+adapter`) is part of the training run's name, so that only like is lined up with
    like.
    """
    if model in TRAINING_STEPS:
        return "demo", TRAINING_STEPS[model]
    found = _STEP.match(model)
    return None if found is None else (f"{found['series']}{found['rest']}" or "model", int(found["step"]))
