"""The table `finetune`: a grid of LoRA adapters."""

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from layercache.recipe.base import Seed, Spec, Strings, listed, unique


class FinetuneSpec(Spec):
    """A grid of LoRA adapters: every combination of `r`, `alpha`, `targets`, `learning_rate` and `seeds` is one."""

    label: str
    """The column whose text is the right answer: one of the choices, blanks around it and upper case apart."""
    choices: list[str] | None = None
    """The answers, verbatim: `[" true", " false"]`; those of `extract.choices` when not given."""
    data: str | None = None
    """The data set to train on, by its name in the store; needed where there are several."""
    r: Annotated[list[Annotated[int, Field(ge=1)]], BeforeValidator(listed), Field(min_length=1)] = [8]
    """Ranks."""
    alpha: Annotated[list[Annotated[float, Field(ge=0)]], BeforeValidator(listed), Field(min_length=1)] = [16.0]
    """Values of alpha: the adapter's output is multiplied by alpha / r. 0 is the base model, which is not trained."""
    targets: Annotated[Strings, BeforeValidator(listed), Field(min_length=1)] = ["all-linear"]
    """Modules that are adapted: `all-linear` (all in the blocks) or names joined by a plus sign, `q_proj+v_proj`."""
    learning_rate: Annotated[list[Annotated[float, Field(gt=0)]], BeforeValidator(listed), Field(min_length=1)] = [1e-4]
    """Peak learning rates; each is an axis of the grid."""
    seeds: Annotated[list[Seed], BeforeValidator(listed), Field(min_length=1)] = [0]
    """Seeds of an adapter's first weights and of the order of the rows."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the training rows; AdamW, the learning rate falling to 0 along a cosine."""
    batch_size: int = Field(default=16, ge=1)
    """Rows in one step."""
    accumulate: int = Field(default=1, ge=1)
    """Steps whose gradients make one update: for a batch that does not fit the memory."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of the adapter's input."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: for a model that does not fit the memory."""
    group_by: Strings | None = None
    """Columns whose equal values never straddle the splits; the data set's own `group_by` when not given."""
    validation: float = Field(default=0.1, ge=0, lt=1)
    """Share of the rows to validate on, where the data have no splits."""
    test: float = Field(default=0.2, gt=0, lt=1)
    """Share of the rows to test on, where the data have no splits."""
    split_seed: Seed = 0
    """Seed of these splits."""
    out: str | None = None
    """The folder of the adapters; `STORE-adapters` beside the store when not given."""

    @field_validator("targets")
    @classmethod
    def _targets_are_names(cls, value: list[str]) -> list[str]:
        # One way to write a set of modules, so that it is one cell.
        parts = [[name.strip() for name in text.split("+")] for text in value]
        if not all(name for names in parts for name in names):
            raise ValueError("a name of a module is empty: write all-linear, or names joined by +")
        return unique("+".join(sorted(set(names))) for names in parts)

    @model_validator(mode="after")
    def _some_rows_are_left(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError("validation and test leave nothing to train on: their shares must be below 1 together")
        return self
