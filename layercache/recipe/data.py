"""The tables `models` and `data`: what is run, and how a row of data becomes a prompt with labels."""

from typing import Literal, NamedTuple, get_args

from pydantic import Field, field_validator, model_validator

from layercache import nearest
from layercache.errors import RecipeError
from layercache.recipe.base import Attention, Spec, Strings, unique

LabelKind = Literal["number", "category", "boolean", "text"]
LABEL_KINDS: tuple[str, ...] = get_args(LabelKind)


class Label(NamedTuple):
    """A declared label: the column it comes from and how it is to be understood."""

    name: str
    kind: str

    def __str__(self) -> str:
        return f"{self.name}:{self.kind}"


def parse_label(text: str) -> Label:
    """Read `rating:number`.

    Raises:
        RecipeError: there is no kind, or one that is not known.
    """
    name, _, kind = text.rpartition(":")
    if not name or kind not in LABEL_KINDS:
        close = nearest.nearest(kind, LABEL_KINDS) if name else []
        meant = f"; did you mean {name}:{close[0]}?" if close else ""
        raise RecipeError(
            f"label {text!r} needs a kind: write NAME:KIND with KIND one of {', '.join(LABEL_KINDS)}{meant}"
        )
    return Label(name, kind)


class ModelSpec(Spec):
    """One model, fed one way."""

    model: str
    """A folder, a Hugging Face hub name, or `demo`, `demo:early`, `demo:middle`, `demo:mamba2`, `demo:random`, `demo:mamba`."""
    revision: str | None = None
    """A branch, tag or commit of a hub model, or a subfolder of a local one (`checkpoint-500`); the run is named after it."""
    revisions: Strings = []
    """Several of them, each a run: `["step1", "step512"]`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    """Overrides the recipe's `extract.dtype` for this model."""
    attn: Attention | None = None
    """Overrides the recipe's `extract.attn` for this model."""
    quantize: Literal["int8", "nf4"] | None = None
    """Overrides the recipe's `extract.quantize` for this model."""
    adapter: str | None = None
    """The folder of an adapter that PEFT trained on this model (LoRA)."""

    @model_validator(mode="after")
    def _one_way_of_naming_revisions(self) -> "ModelSpec":
        if self.revision is not None and self.revisions:
            raise ValueError("give revision or revisions, not both")
        return self

    def each(self) -> "list[ModelSpec]":
        """Return a specification for each revision; this one where there is at most one."""
        every = dict.fromkeys(self.revisions)
        return [self.model_copy(update={"revision": one, "revisions": []}) for one in every] or [self]


class DataSpec(Spec):
    """One data set and how a row becomes a prompt."""

    source: str
    """A CSV, TSV, JSON, JSONL or Parquet file, `hf:NAME`, or `demo:NAME`."""
    name: str | None = None
    """What the data set is called in the store; the file's stem when not given."""
    template: str | None = None
    """The prompt, with a `{column}` or `{nested.field}` for every span."""
    chat: bool = False
    """Render the template as the user's turn of the tokenizer's chat template."""
    labels: Strings = []
    """`NAME:KIND` with KIND number, category, boolean or text."""
    target: str | None = None
    """A column whose first token the lens follows at the prompt's last position."""
    reference: Strings | None = None
    """Columns with the texts that generated text is compared with; a list-valued cell holds several."""
    answers: Strings | None = None
    """Columns with the accepted answers, which a generated answer is labelled by: a list, a JSON list as text, or one text."""
    exact_answer: str | None = None
    """A column with the words of the generated answer that are the exact one, where it is not to be found."""
    spans: Strings = []
    """`COLUMN@FIELD`: a column whose text makes a span of its own where it stands in a template field (`subject@question`)."""
    split: str | None = None
    """A column naming each row's split; a column called `split` is used when this is not given."""
    group_by: str | None = None
    """A column whose equal values never straddle a fold (a passage, a director)."""
    missing: Strings = []
    """Cells that mean "no value", beside the empty one."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first rows."""

    @field_validator("spans")
    @classmethod
    def _spans_parse(cls, value: list[str]) -> list[str]:
        for text in value:
            column, _, field = text.rpartition("@")
            if not column or not field:
                raise ValueError(f"{text!r} needs a column and the template field it is looked for in: COLUMN@FIELD")
        return unique(value)

    @field_validator("labels")
    @classmethod
    def _labels_parse(cls, value: list[str]) -> list[str]:
        return [str(parse_label(text)) for text in value]
