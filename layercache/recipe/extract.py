"""The table `extract`: what is captured, and how the model is run."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from layercache import outputs
from layercache.conditions import AUGMENT, CLEAN, Settings, check
from layercache.errors import RecipeError
from layercache.quantities import nbytes
from layercache.recipe.base import Attention, Layers, Seed, Spec, Strings, unique

_LAST = "last@prompt"
"""The lens position at which choices are scored."""


def _position(text: str) -> str:
    """Write a lens position in full: `last` is `last@prompt`."""
    return str(outputs.parse_position(text))


class ExtractSpec(Spec):
    """What is captured and how the model is run."""

    pooling: Strings = ["mean", "last"]
    """`mean`, `max`, `first`, `last`, `mean+special`, `mean-sinks`, `token`, over the prompt or `@` a span."""
    sites: Strings = ["resid"]
    """`resid`, `attn_out`, `mlp_out`."""
    layers: Layers = "all"
    """Layer numbers; 0 is the embedding output."""
    lens: Strings = ["last"]
    """Positions at which the logit lens is read (`last`, `last@question`, `token` for every token); empty for none."""
    top_k: int = Field(default=10, ge=1)
    """Tokens kept by the lens at each position and layer."""
    choices: list[str] = []
    """Answers that the lens scores at the prompt's last position, verbatim: `[" true", " false"]`."""
    stats: Strings = []
    """Statistics over the prompt's tokens: `norm`, `max_norm`, `sinks`, `mean_cosine`, `curvature`, `prompt_entropy`,
    `effective_rank`, `first_pc_share`; with an order (`prompt_entropy2`) and `+centre`, `+unit`, `-first` where they
    take them."""
    spectrum_sample: int | None = Field(default=None, ge=1)
    """Take statistics that need eigenvalues of so many samples only, chosen by `seed`; of all when not given."""
    sink_cutoff: float = Field(default=outputs.SINK_CUTOFF, ge=1, le=1e6)
    """`mean-sinks` and `sinks`: tokens above this multiple of the sample's median token norm are sinks."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: the checkpoint's on a GPU, float32 on a CPU."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""
    device_map: Literal["auto", "balanced", "sequential"] | None = None
    """Spread a model's layers over all GPUs, as accelerate's setting of that name does; one device when not given."""
    max_memory: Strings = []
    """What the weights may take where `device_map` spreads them: `0=20GB` of the first GPU, `cpu=60GB` of the host; what
    is over goes to the disk. Devices that are not named get nothing; all that is free when not given."""
    attn: Attention = "auto"
    """The attention kernel; `auto` is what transformers chooses."""
    quantize: Literal["int8", "nf4"] | None = None
    """Quantise the linear layers inside the blocks with bitsandbytes: LLM.int8 or 4-bit NormalFloat."""
    compile: bool = False
    """Let torch compile every block; site `resid` only."""
    reference: int = Field(default=0, ge=0)
    """Samples run again in float32, alone, with eager attention and unquantised weights, to measure this run's noise."""
    truncate: bool = False
    """Cut prompts longer than the model's context instead of refusing them."""
    batch_tokens: int | None = Field(default=None, ge=1)
    """Padded tokens a batch may hold; found automatically when not given."""
    precision: Literal[7, 10, 23] = 10
    """Mantissa bits that stored vectors keep."""
    allow_nonfinite: bool = False
    """Keep infinities and NaN instead of refusing the shard."""
    self_check: bool = True
    """Hold hooks, padding and lens against the model's own output before the run, and feed prompts in a way that changes no
    number; without it they are padded as usual, which is wrong for a few models (RWKV)."""
    save_head: bool = False
    """Keep the final norm and unembedding beside the run, for new lens questions without the model."""
    trust_remote_code: bool = False
    """Run code that comes with a hub model."""
    seed: Seed = 0
    """Orders the batches within a window."""
    generate_layers: Layers = []
    """Layers that text is generated from, 0 to L; none when not given."""
    generate_answer: bool = False
    """Let the model answer every prompt, and capture the pass over prompt and answer; adds spans `answer`, `exact_answer`."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Tokens a generated text may have; an answer 32 when not given."""
    stop: Strings = []
    """Strings that end a generated text, and are cut from it; an answer ends with its line when not given, but for a chat."""
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Divides the logits when sampling; 0 takes the most probable token."""
    sample_top_k: int | None = Field(default=None, ge=1)
    """Sample only from so many most probable tokens."""
    sample_top_p: float | None = Field(default=None, gt=0, le=1)
    """Sample only from the most probable tokens that together have this probability."""
    generate_seed: Seed = 0
    """Seed of sampling; a text does not depend on its batch."""
    no_final_norm: bool = False
    """Generate with the head on the state as it is, without the model's final norm."""
    conditions: Strings = []
    """Changed passes beside the clean one: `knockout-question`, `patch-question`, `random-0.25`, …"""
    augment: int = Field(default=0, ge=0, le=1000)
    """Views of every prompt with split words, random characters and typos: conditions `augment-1`, `augment-2`, …"""
    augment_rate: float = Field(default=Settings().augment_rate, gt=0, le=1)
    """Share of a prompt's words, and of such a word's characters, that a view changes."""
    condition_seed: Seed = 0
    """Seed of what conditions draw: control tokens, donors, replaced tokens, views."""
    control_from: str = outputs.WHOLE_PROMPT
    """The span that control tokens are drawn from."""

    @field_validator("conditions")
    @classmethod
    def _conditions_are_known(cls, value: list[str]) -> list[str]:
        return unique(check(text) for text in value)

    @field_validator("max_memory")
    @classmethod
    def _memory_is_of_devices(cls, value: list[str]) -> list[str]:
        for one in value:
            device, _, size = one.partition("=")
            if not (device.isdecimal() and device.isascii()) and device != "cpu":
                raise ValueError(f"{one!r} names no device: write 0=20GB,cpu=60GB")
            try:
                nbytes(size)
            except RecipeError as error:
                raise ValueError(str(error)) from error
        return value

    @model_validator(mode="after")
    def _memory_is_of_a_map(self) -> Self:
        if self.max_memory and self.device_map is None:
            raise ValueError("max_memory says how device_map spreads a model: give device_map too (auto)")
        return self

    @field_validator("stop")
    @classmethod
    def _stops_say_something(cls, value: list[str]) -> list[str]:
        if "" in value:
            raise ValueError("an empty string would end every text at once")
        return value

    @model_validator(mode="after")
    def _answers_come_alone(self) -> Self:
        if self.generate_answer and self.generate_layers:
            raise ValueError(
                "generate_answer and generate_layers are two runs: texts of layers go on from a prompt alone"
            )
        if self.generate_answer and self.choices:
            raise ValueError("choices go on from a prompt alone: score them in a run without generate_answer")
        return self

    @model_validator(mode="after")
    def _sampling_is_asked_for(self) -> "ExtractSpec":
        if self.temperature == 0 and (self.sample_top_k is not None or self.sample_top_p is not None):
            raise ValueError("sample_top_k and sample_top_p need a temperature above 0")
        return self

    @field_validator("pooling")
    @classmethod
    def _pooling_parses(cls, value: list[str]) -> list[str]:
        return unique(str(outputs.parse_pooling(text)) for text in value)

    @field_validator("lens")
    @classmethod
    def _lens_parses(cls, value: list[str]) -> list[str]:
        return unique(_position(text) for text in value)

    @field_validator("sites")
    @classmethod
    def _sites_parse(cls, value: list[str]) -> list[str]:
        return unique(outputs.parse_site(text) for text in value)

    @field_validator("stats")
    @classmethod
    def _stats_parse(cls, value: list[str]) -> list[str]:
        return unique(outputs.parse_statistic(text) for text in value)

    @field_validator("choices")
    @classmethod
    def _choices_say_something(cls, value: list[str]) -> list[str]:
        if "" in value:
            raise ValueError("a choice is empty: write the answer as it would follow the prompt")
        return unique(value)

    @model_validator(mode="after")
    def _choices_have_a_position(self) -> Self:
        if self.choices and _LAST not in map(_position, self.lens):
            raise ValueError(f"choices are scored by the lens at {_LAST}: add last to lens")
        return self

    def condition_names(self) -> list[str]:
        """List the conditions asked for beside the clean one, as they were written, then the views."""
        views = [f"{AUGMENT}-{n}" for n in range(1, self.augment + 1)]
        return [name for name in unique([*self.conditions, *views]) if name != CLEAN]

    def condition_settings(self) -> Settings:
        """Return the parameters that conditions share."""
        return Settings(self.condition_seed, self.control_from, self.augment_rate)

    def outputs(self) -> list[outputs.Output]:
        """List the outputs asked for: states at every site and pooling, lenses, then statistics."""
        poolings = [outputs.parse_pooling(text) for text in self.pooling]
        named = [one._replace(how=outputs.with_cutoff(one.how, self.sink_cutoff)) for one in poolings]
        hidden = [outputs.Hidden(site, one) for site in self.sites for one in named]
        scored = outputs.choices_hash(self.choices) if self.choices else ""
        lenses = [
            outputs.Lens(outputs.parse_position(text), self.top_k, scored if _position(text) == _LAST else "")
            for text in self.lens
        ]
        stats = [outputs.Stats(outputs.with_cutoff(name, self.sink_cutoff)) for name in self.stats]
        return list(dict.fromkeys([*hidden, *lenses, *stats]))
