"""How fast states and lens are stored on a GPU, against the bare forward pass.

    python benchmarks/extract_gpu.py [--quick] [--json] [--shapes 1b,8b]

Llamas of the shape of Llama-3.2-1B and Llama-3.1-8B with random weights in bfloat16 read ragged prompts
(log-normal, 4 to 768 tokens). The contenders are those of `benchmarks/extract.py`. Then:

    where the time goes   bare forward; with our reducers but nothing written; with the store written
    every token           the lens at every token of a few prompts, against the bare forward of the same
    write rate            states encoded and published by the store alone, MB of float32 a second, and the
                          rate at which a pooled extraction makes them: above 1, the disk is never waited for

Needs a CUDA device; says so and stops where there is none.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import _options
import numpy as np
import torch
import transformers
from _contest import LENS, STATES, Contest, Shape, installed, make_model, make_samples, measure, report

from layercache.extract.forward import Forward
from layercache.extract.lens import read
from layercache.extract.pooling import HiddenReducer
from layercache.extract.unembed import Unembedding
from layercache.outputs import Hidden, parse_pooling
from layercache.store import writer

SHAPES = {
    "1b": Shape(layers=16, width=2048, inner=8192, heads=32, kv_heads=8, vocabulary=128_256, longest=768),
    "8b": Shape(layers=32, width=4096, inner=14_336, heads=32, kv_heads=8, vocabulary=128_256, longest=768),
}
RIVALS = ("nnsight", "transformer_lens")


def clock(work: object, *arguments: object, rounds: int = 5) -> float:
    """The median time of some calls, seconds."""
    times = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work(*arguments)  # type: ignore[operator]
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def reduced_only(contest: Contest) -> None:
    """Our forward with its reducers, nothing written."""
    layers = [layer for layer, _ in contest.model.structure.layers]
    wanted = {Hidden("resid", parse_pooling(name)): layers for name in STATES.pooling}
    forward = Forward(contest.model, [HiddenReducer(wanted, STATES.precision)])
    for members in contest.sorted:
        for _, collect in forward.run(contest.collate(members)):
            collect()


def breakdown(contest: Contest) -> dict[str, float]:
    """Print where the time of a pooled extraction goes."""
    bare = clock(contest.bare, contest.sorted)
    reduced = clock(reduced_only, contest)
    stored = clock(contest.layercache, STATES)
    print(f"\nwhere the time goes      seconds  of the bare forward\nbare forward          {bare:>10.3f}{1:>21.3f}")
    print(f"and reduced           {reduced:>10.3f}{reduced / bare:>21.3f}")
    print(f"and written           {stored:>10.3f}{stored / bare:>21.3f}")
    return {"reduced_over_bare": round(bare / reduced, 3), "written_over_bare": round(bare / stored, 3)}


@torch.inference_mode()
def every_token(contest: Contest) -> float:
    """Print and return the cost of the lens at every token, as a multiple of the bare forward of the same prompts."""
    batch = contest.sorted[0]
    tokens = sum(len(sample) for sample in batch)
    unembedding = Unembedding(contest.model)
    shape = (contest.model.structure.n_layers + 1, tokens, contest.model.structure.width)
    states = torch.randn(shape, device=contest.device)
    targets = torch.zeros(tokens, dtype=torch.int64, device=contest.device)
    ratio = clock(lambda: read(unembedding, states, targets, LENS.top_k)(), rounds=3) / clock(
        contest.bare, [batch], rounds=3
    )
    print(f"\nlens at every token of {tokens:,} tokens: {ratio:.2f} times their bare forward")
    return round(ratio, 2)


def write_rate(contest: Contest, seconds_: float) -> dict[str, float]:
    """Print and return how fast the store takes pooled states, and how that compares with their making."""
    structure = contest.model.structure
    layers = [layer for layer, _ in structure.layers]
    per_sample = len(layers) * len(STATES.pooling) * structure.width * 4
    n = max(64, 512 * 2**20 // per_sample)
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(n, structure.width)).astype(np.float32).view(np.uint32) & 0xFFFFE000).view(np.float32)
    ids = [f"{i:024x}" for i in range(n)]
    with tempfile.TemporaryDirectory() as folder:
        run = writer.open_run(
            Path(folder) / "store",
            {"benchmark": 2},
            model="random-llama",
            layers=structure.layers,
            width=structure.width,
            final_layer=structure.n_layers,
        )
        outputs = {f"hidden:resid:{name}@prompt": layers for name in ("mean", "last")}
        shard = writer.Shard(run, outputs, provenance={})
        shard.add("samples", _sample_table(ids))
        for name in ("mean@prompt", "last@prompt"):
            for layer in layers:
                shard.add("hidden", _hidden_table(ids, name, layer, vectors))
        start = time.perf_counter()
        shard.publish()
        took = time.perf_counter() - start
    rate = n * per_sample / took / 1e6
    made = len(contest.samples) * per_sample / seconds_ / 1e6
    print(
        f"\nwritten {rate:,.0f} MB/s of float32; a pooled extraction makes {made:,.1f} MB/s: {rate / made:,.1f} times"
    )
    return {"write_mb_per_s": round(rate), "write_over_make": round(rate / made, 1)}


def _sample_table(ids: list[str]) -> dict[str, object]:
    n = len(ids)
    none: list[object] = [[] for _ in range(n)]
    return {
        "sample_id": ids,
        "prompt": [""] * n,
        "n_tokens": [1] * n,
        "n_special": [0] * n,
        "n_truncated": [0] * n,
        "spans": none,
        "target_id": [None] * n,
        "absent": none,
    }


def _hidden_table(ids: list[str], pooling: str, layer: int, vectors: np.ndarray) -> dict[str, object]:
    n = len(ids)
    return {
        "sample_id": ids,
        "site": ["resid"] * n,
        "layer": np.full(n, layer, np.int32),
        "pooling": [pooling] * n,
        "position": [None] * n,
        "vector": vectors,
    }


def main() -> None:
    parser = _options.parser(__doc__, "the 1B shape alone, fewer prompts and rounds")
    parser.add_argument("--shapes", default="1b,8b", help="which of 1b, 8b")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here: this benchmark measures a GPU (benchmarks/extract.py measures a CPU)")
        sys.exit(0)
    transformers.utils.logging.set_verbosity_error()
    names = ["1b"] if options.quick else options.shapes.split(",")
    n_prompts, rounds = (192, 4) if options.quick else (1024, 7)
    figures: dict[str, float] = {}
    for name in names:
        shape = SHAPES[name]
        contest = Contest(make_model(shape, "cuda:0", torch.bfloat16), make_samples(n_prompts, shape))
        print(
            f"\n{name}: {shape.layers} layers of width {shape.width}, bfloat16, {n_prompts:,} prompts,"
            f" {contest.tokens:,} tokens, {rounds} rounds; {torch.cuda.get_device_name()}, torch {torch.__version__},"
            f" transformers {transformers.__version__}\n"
        )
        found = report(measure(contest, contest.contenders(installed(RIVALS)), rounds, 2), contest.tokens)
        found |= breakdown(contest)
        found["lens_every_token_over_forward"] = every_token(contest)
        found |= write_rate(contest, clock(contest.layercache, STATES, rounds=1))
        figures |= {f"{name}_{key}": value for key, value in found.items()}
        del contest
        torch.cuda.empty_cache()
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
