"""How much faster text comes from all layers in one sweep than from one run per layer.

    python benchmarks/generate.py [--quick] [--json]

A Llama of 12 layers and width 768 with random weights and a vocabulary of 32,000 continues random prompts
(4 to 64 tokens) greedily, 32 tokens from each of its layers 1 to 12. Everything runs in turn in this
process, in paired rounds, and every contender gives the same texts, which is checked:

    sweep         layercache: one prefill, then one batch whose row of exit k leaves after block k
    per layer     a run for every layer: a model cut after block k, transformers' own `generate` with its
                  cache, all prompts in one batch
    full passes   a run for every layer as published code does it: all blocks over all tokens for every new
                  token, no cache, the head on the final norm of that layer's state (one prompt only)

A figure is the median over rounds of the ratio of times within a round; `a_over_a` is the sweep against
itself. Then the same against `per layer` at other depths, and the memory of the caches.
"""

import copy
import json
import statistics
from collections.abc import Callable

import _options
import torch
import transformers
from _contest import Shape, make_model, make_samples, make_tokenizer, paired

from layercache.extract.generation.generate import Generate
from layercache.extract.generation.sampling import Settings
from layercache.extract.model import Model
from layercache.extract.tokenize import Sample

SHAPE = Shape(layers=12, width=768, inner=2048, heads=12, kv_heads=12, vocabulary=32_000, longest=768)
LONGEST_PROMPT = 64

Texts = dict[tuple[int, int], list[int]]
"""(layer, prompt) → token ids."""


class Contest:
    """The same prompts and layers for every contender."""

    def __init__(self, layers: int, prompts: int, new_tokens: int) -> None:
        shape = SHAPE._replace(layers=layers)
        self.model: Model = make_model(shape)
        self.module = self.model.module
        self.module.generation_config.eos_token_id = None
        self.samples: list[Sample] = make_samples(prompts, shape, longest=LONGEST_PROMPT)
        self.layers, self.new = list(range(1, layers + 1)), new_tokens
        self.texts: dict[str, Texts] = {}
        settings = Settings(new_tokens, (), 0.0, None, None, None, True, ())
        tokenizer = make_tokenizer(shape.vocabulary)
        self.generate = Generate(self.model, tokenizer, settings, self.layers, self.samples, pad_id=0)
        assert self.generate.note is None, self.generate.note

    def sweep(self) -> Texts:
        rows = self.generate.decode(self.samples, self.layers)
        place = {sample.id: index for index, sample in enumerate(self.samples)}
        return {(row.layer, place[row.sample.id]): row.token_ids for row in rows}

    @torch.inference_mode()
    def per_layer(self) -> Texts:
        ids, mask = self._padded()
        found: Texts = {}
        for layer in self.layers:
            out = self._cut(layer).generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=self.new, do_sample=False, pad_token_id=0
            )
            found |= {(layer, row): text[ids.shape[1] :].tolist() for row, text in enumerate(out)}
        return found

    @torch.inference_mode()
    def full_passes(self) -> Texts:
        found: Texts = {}
        for layer in self.layers:
            for row, sample in enumerate(self.samples):
                ids = torch.from_numpy(sample.tokens).long()[None]
                for _ in range(self.new):
                    out = self.module.model(input_ids=ids, use_cache=False, output_hidden_states=True)
                    state = out.hidden_states[layer][:, -1]
                    # transformers gives the last state after the final norm already.
                    state = state if layer == self.layers[-1] else self.module.model.norm(state)
                    ids = torch.cat([ids, self.module.lm_head(state).argmax(-1, keepdim=True)], dim=1)
                found[layer, row] = ids[0, len(sample) :].tolist()
        return found

    def _padded(self) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(len(sample) for sample in self.samples)
        ids = torch.zeros(len(self.samples), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, sample in enumerate(self.samples):
            ids[row, width - len(sample) :] = torch.from_numpy(sample.tokens)
            mask[row, width - len(sample) :] = 1
        return ids, mask

    def _cut(self, layer: int) -> torch.nn.Module:
        """A model that ends after a block and shares its weights with the whole one."""
        cut, base = copy.copy(self.module), copy.copy(self.module.model)
        cut._modules, base._modules = dict(self.module._modules), dict(self.module.model._modules)
        base.layers = self.module.model.layers[:layer]
        cut.model = base
        cut.config = base.config = copy.deepcopy(self.module.config)
        cut.config.num_hidden_layers = layer
        return cut

    def agree(self) -> float:
        """The share of texts that are the same by every contender; random weights make ties rare, not impossible."""
        first, *others = self.texts.values()
        return sum(all(first[key] == other[key] for other in others) for key in first) / len(first)

    def cache_megabytes(self) -> tuple[float, float]:
        """Keys and values at the end: of the sweep, and of the run of the deepest layer alone."""
        width, config = max(len(sample) for sample in self.samples) + self.new, self.module.config
        token = 2 * config.num_key_value_heads * config.head_dim * 4 / 2**20
        rows = len(self.samples) * width * token
        return rows * sum(self.layers), rows * self.layers[-1]


def compare(layers: int, prompts: int, new_tokens: int, rounds: int, *, full: bool) -> dict[str, float]:
    """Run the contenders in paired rounds; print and return the median speed of the sweep over each."""
    contest = Contest(layers, prompts, new_tokens)
    work: dict[str, Callable[[], Texts]] = {"sweep": contest.sweep, "per layer": contest.per_layer}
    if full:
        work["full passes"] = contest.full_passes
    work["sweep again"] = contest.sweep
    contest.sweep()
    times, contest.texts = paired(work, rounds, contest.model.plan.device)
    print(f"\n{layers} layers, {prompts} prompts, {new_tokens} tokens each; {contest.agree():.0%} of texts agree")
    figures = {}
    for name in [*list(work)[1:]]:
        ratios = [slow / fast for slow, fast in zip(times[name], times["sweep"], strict=True)]
        figures[name] = round(statistics.median(ratios), 3)
        print(f"  sweep over {name:14}{figures[name]:>8.2f}   ({min(ratios):.2f} to {max(ratios):.2f})")
    ours, alone = contest.cache_megabytes()
    print(f"  caches at the end: {ours:,.0f} MB in the sweep, {alone:,.0f} MB in the deepest run alone")
    return figures


def main() -> None:
    options = _options.parser(__doc__, "fewer layers, tokens and rounds").parse_args()
    transformers.utils.logging.set_verbosity_error()
    layers, new, rounds, depths = (6, 8, 2, []) if options.quick else (12, 32, 5, [4, 8])
    one = compare(layers, 1, new, rounds, full=True)
    eight = compare(layers, 8, new, rounds, full=False)
    figures = {
        "over_per_layer_1": one["per layer"],
        "over_per_layer_8": eight["per layer"],
        "over_full_passes_1": one["full passes"],
        "a_over_a": one["sweep again"],
    }
    for depth in depths:
        figures[f"over_per_layer_1_depth_{depth}"] = compare(depth, 1, new, rounds, full=False)["per layer"]
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
