"""What the pages' commands need to run here, and which of them cannot: the table that `test_pages.py` goes by.

A command is named by how it begins. Those that a page holds and this table does not speak of are run as they are typed, in a
folder that looks like a clone, one after the other.
"""

from typing import NamedTuple

STUDIES = {
    "demo-store": "layercache run demo --store demo-store",
    "movies-store": "layercache run movies --store movies-store",
    "generation-store": "layercache run layer_generation --store generation-store",
    "truth-store": "layercache run truth_pathways --store truth-store",
    "boolq-store": "layercache run boolq_lora --store boolq-store",
    "quality-store": "layercache run representation_quality --store quality-store",
}
"""Stores that several pages ask, made once by the command that pages name for it; where a page has that very command, it has run."""

_PROBE = "--set analyze.0.folds=2 --set analyze.0.bootstrap=50"
_TWO_CELLS = "--set data.limit=100 --set finetune.r=1,2 --set finetune.alpha=0,8 --set finetune.seeds=0 --set finetune.epochs=0.2"
_EIGHT_FILMS = "--set data.limit=8 --set models=demo"
_FILMS = "--set data.limit=40 --set extract.layers=0,1,2"
SMALLER = {
    "run demo": f"--set data.0.limit=40 --set data.1.limit=20 {_PROBE}",
    "run movies": f"--set data.limit=40 --set extract.pooling=last {_PROBE}",
    "run films.toml": f"{_FILMS} {_PROBE}",
    "run layer_generation": "--set data.0.limit=6 --set data.1.limit=6 --set extract.max_new_tokens=4",
    "run truth_pathways": f"--set data.limit=80 --set analyze.0.noise=10 --set analyze.0.repeats=1 {_PROBE}",
    "run boolq_lora": f"{_TWO_CELLS} {_PROBE} --set extract.pooling=last",
    "run representation_quality": "--set data.0.limit=40 --set data.1.limit=40 --set models=demo:middle,demo"
    f" --set extract.conditions=repeat-0.5,truncate-16 {_PROBE} --set analyze.1.folds=2 --set analyze.1.bootstrap=50"
    " --set analyze.2.bootstrap=50 --set analyze.3.bootstrap=50 --set analyze.4.bootstrap=50",
    "extract demo": "--set data.0.limit=40 --set data.1.limit=20",
    "extract movies": _EIGHT_FILMS,
    "extract films.toml": _FILMS,
    "extract boolq_lora": f"{_TWO_CELLS} --set extract.pooling=last",
    "finetune boolq_lora": _TWO_CELLS,
    "plan movies": _EIGHT_FILMS,
    "extract -": "--limit 30",
    "analyze probe": "--folds 2 --bootstrap 50",
    "analyze delta_p": "--folds 2 --bootstrap 50 --noise 10 --repeats 1",
    "analyze": "--bootstrap 50",
}
"""What is added to a command line that begins so: fewer rows, fewer resamples."""

UNCHECKED = "--set extract.self_check=false"
"""Added to every `run` and `extract` of a recipe: the models are known, and their check takes longer than so few rows."""

INSTALLS = "installs packages"
SCRIPT = "takes minutes; run with --quick by test_a_script_runs"
QUICKLY = f"({SCRIPT})"
RARELY = "too slow for every day, small as it is: the pages about it run it, by `make torture`"
GPU = "needs GPUs"
HOURS = "trains for an hour"

NEVER = {
    "pip install": INSTALLS,
    "make test": "runs the tests",
    "make torture": "runs tests for hours",
    "make bench": "runs the benchmarks for hours",
}
"""Commands that no test runs, on whatever page they stand, and why."""


class Page(NamedTuple):
    """What a page needs, beside a clone. Tables go by how a command begins where nothing else is said."""

    stores: tuple[str, ...] = ()
    """Studies, by name."""
    files: tuple[str, ...] = ()
    """Data files and models, by name: small ones are made (`page_props.FILES`)."""
    recipe: str = ""
    """The file that the page's own recipe is kept in."""
    before: tuple[str, ...] = ()
    """Commands that prepare what the page takes for granted."""
    programs: dict[str, str] = {}  # noqa: RUF012
    """Programs that are not there, as a line of shell that stands for each."""
    speaks_of: str = ""
    """The store that commands in running text are about, where they name none: LAYERCACHE_STORE."""
    about: dict[str, str] = {}  # noqa: RUF012
    """The same of single commands."""
    instead: dict[str, str] = {}  # noqa: RUF012
    """What is put in the place of a part of a command, by that part."""
    not_run: dict[str, str] = {}  # noqa: RUF012
    """Commands that are not run, and why."""
    shows: dict[str, str] = {}  # noqa: RUF012
    """Of every `text` block, by how it begins, the command that printed it, or the file; in parentheses why neither is looked at."""
    smaller: dict[str, str] = {}  # noqa: RUF012
    """What goes before `SMALLER`."""
    exits: dict[str, int] = {}  # noqa: RUF012
    """Exit codes other than 0."""
    needs: str = ""
    """What has to run beside it: `bucket`, `hub` or `ray`."""
    charts: bool = False
    """Whether a study draws its charts as files, too: half of what a small one takes."""
    torture: bool = False


LLAMA = "meta-llama/Llama-3.2-1B"
ONE_CELL = (
    "--set data.limit=60 --set finetune.r=2 --set finetune.alpha=8 --set finetune.seeds=0 --set finetune.epochs=0.2"
    " --set extract.layers=0,1 --set extract.pooling=last --set analyze.0.folds=2 --set analyze.0.bootstrap=50"
)
FEW = "--set models=demo --set data.0.limit=24 --set data.1.limit=4"
A_SAMPLE = (
    """"$(layercache sql --format csv "SELECT min(sample_id) FROM rows WHERE data = 'movies'" | tail -n 1)" """.strip()
)
PARALLEL = 'head -n 1 > .first; sh -c "$(cat .first)"'
"""Jobs of a plan differ by a number: the first is run."""
PLANNED = {"parallel": PARALLEL, "sbatch": 'cat "${1:-/dev/stdin}" > .script; SLURM_ARRAY_TASK_ID=0 bash .script'}

TABLE = {
    "CONTRIBUTING.md": Page(files=("docs",)),
    "README.md": Page(
        stores=("demo-store", "movies-store", "generation-store", "truth-store"),
        files=("films.csv", "action.csv", LLAMA, "gpt2", "my-llama"),
        not_run={STUDIES["boolq-store"]: RARELY, STUDIES["quality-store"]: RARELY},
        instead={"make demo": STUDIES["demo-store"]},
    ),
    "docs/adaptation.md": Page(
        stores=("boolq-store",),
        files=("boolq.jsonl", LLAMA),
        smaller={"run boolq_lora": ONE_CELL},
        instead={"hf:google/boolq:train": "boolq.jsonl"},
        speaks_of="boolq-store",
        torture=True,
        not_run={"python -m layercache.demo.small_models": "minutes; tests/demo/test_demo_small_models.py trains them"},
    ),
    "docs/analyses.md": Page(stores=("demo-store",), instead={"films-store": "demo-store"}),
    "docs/answers.md": Page(
        files=("popqa.jsonl", "triviaqa.jsonl", "nq_open.jsonl", "hotpotqa.json", "FOLDER", "MODEL"),
        shows={"answers of": "layercache extract --store qa-store", "             rows": "python benchmarks/labels.py"},
    ),
    "docs/architecture.md": Page(files=("docs",), shows={" CSV, JSONL": "(a picture)"}),
    "docs/buckets.md": Page(
        smaller={"extract demo": FEW},
        needs="bucket",
        instead={"AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=… AWS_REGION=eu-central-1": "AWS_REGION=us-east-1"},
        not_run={"python benchmarks/bucket.py": SCRIPT},
        speaks_of="s3://my-bucket/films",
    ),
    "docs/cli.md": Page(
        torture=True,
        stores=("demo-store", "movies-store", "generation-store", "truth-store"),
        files=("docs", "films.csv", "action.csv", "states.npy", "gpt2", "my-llama", "llama", LLAMA),
        needs="hub",
        programs=PLANNED,
        not_run={"layercache finetune boolq_lora --set": RARELY},
        before=(
            f"layercache extract --store llama-store --model {LLAMA} --data films.csv --prompt '{{title}}' --limit 4",
            "mkdir -p mnt/shared machine-a machine-b",
            "cp -r llama-store mnt/shared/store",
            "cp -r llama-store machine-a/store",
            "cp -r llama-store machine-b/store",
            "layercache push hf://datasets/me/films-layers --store llama-store",
        ),
        about={
            "layercache analyze text": "generation-store",
            "layercache analyze delta_p": "truth-store",
            "layercache analyze quality": "store",
            "layercache export Llama": "llama-store",
            "layercache compact demo": "movies-store",
            "layercache extract": "films-store",
            "layercache import": "films-store",
            "layercache run movies": "films-store",
            "layercache finetune": "boolq-store",
            "layercache pull": "films-store",
            "layercache rm demo --condition": "truth-store",
            "layercache push": "movies-store",
            "layercache": "demo-store",
        },
        instead={
            "/mnt/shared": "mnt/shared",
            "sample=…": f"sample={A_SAMPLE}",
            "-o llama": "-o exported",
            "-o films.toml": "-o early.toml",
            "rm demo-early": "rm --yes demo-early",
            "knockout-question": "knockout-subject",
            'eval "$(layercache completion zsh)"': "layercache completion zsh",
            "3f…": A_SAMPLE,
            "layercache completion fish | source": "layercache completion fish",
        },
    ),
    "docs/command_line.md": Page(
        files=("films.csv",),
        instead={"layercache completion fish | source": "layercache completion fish"},
        shows={"interrupted: ": "(tests/test_stopping.py)"},
        exits={"layercache run demo --set extract.poolling=last": 2},
    ),
    "docs/comparison.md": Page(),
    "docs/conditions.md": Page(smaller={"extract -": "--limit 12"}, about={"layercache sql --query absent": "noise"}),
    "docs/cookbook.md": Page(),
    "docs/delta_p.md": Page(
        stores=("truth-store",),
        not_run={"python benchmarks/noise_floor.py": SCRIPT},
        shows={"world ": QUICKLY},
    ),
    "docs/demo.md": Page(),
    "docs/extending.md": Page(files=("docs",)),
    "docs/films.md": Page(
        files=("movies.csv",),
        smaller={"extract -": ""},
        shows={"movies, rating": "layercache analyze probe"},
    ),
    "docs/generation.md": Page(stores=("generation-store",), files=("instructions.jsonl", LLAMA)),
    "docs/knockout.md": Page(not_run={"python benchmarks/delta_p.py": SCRIPT}),
    "docs/lens.md": Page(stores=("demo-store",)),
    "docs/models.md": Page(),
    "docs/parts.md": Page(
        smaller={"extract demo": FEW, "run demo": FEW},
        programs=PLANNED,
        shows={"#!/bin/bash": "movies.sbatch"},
        not_run={
            "layercache plan movies --shards 16 --store all | parallel -j 1": "needs other machines",
            "sbatch": "needs Slurm; tests/extract/test_parts_command.py runs the script",
            "layercache extract movies --devices": GPU,
            "layercache extract movies --set extract.device_map": GPU,
        },
    ),
    "docs/probing.md": Page(
        torture=True,
        stores=("quality-store",),
        speaks_of="quality-store",
        shows={"boolq: which layer": "layercache analyze compare"},
    ),
    "docs/quality.md": Page(not_run={"python benchmarks/quality.py": SCRIPT}),
    "docs/quality_samples.md": Page(
        torture=True,
        stores=("quality-store",),
        speaks_of="quality-store",
        about={"layercache sql --query entropy_by_p": "quality-store", "layercache sql --query augm": "quality-store"},
        not_run={"python benchmarks/quality_analysis.py": SCRIPT},
        shows={
            "movies, demo, mean@prompt, clean": "layercache analyze quality --store store",
            "10,000 samples": QUICKLY,
        },
    ),
    "docs/ray.md": Page(
        needs="ray",
        torture=True,
        instead={"--address auto": "--address $RAY_HERE", "10.0.0.5:6379": "$RAY_HERE"},
        not_run={
            "python benchmarks/ray_engine.py": SCRIPT,
        },
    ),
    "docs/recipes.md": Page(files=("films.csv", "gpt2", LLAMA), recipe="films.toml", speaks_of="films-store"),
    "docs/report.md": Page(
        stores=("demo-store", "generation-store"),
        files=("docs",),
        speaks_of="demo-store",
        not_run={"python benchmarks/report.py": SCRIPT},
        charts=True,
    ),
    "docs/samples.md": Page(stores=("demo-store", "movies-store")),
    "docs/scaling.md": Page(
        stores=("movies-store",),
        speaks_of="movies-store",
        not_run={
            "python benchmarks/scaling.py --constants": "tests/transfer/test_scaling_page.py holds the page to them",
            "python benchmarks/scaling.py": SCRIPT,
        },
    ),
    "docs/sql.md": Page(),
    "docs/transfer.md": Page(
        needs="hub",
        files=("films.csv", LLAMA),
        before=(
            f"layercache extract --store films-store --model {LLAMA} --data films.csv --prompt '{{title}}' --limit 9",
            "mkdir -p mnt/shared",
            "cp -r films-store SOURCE",
            "cp -r films-store mnt/shared/store",
        ),
        instead={"/mnt/shared": "mnt/shared"},
    ),
    "docs/tutorial.md": Page(charts=True),
    "layercache/demo/README.md": Page(
        not_run={
            "python -m layercache.demo.train": HOURS,
            "python -m layercache.demo.evaluate": "minutes; tests/demo/test_demo_model.py holds the weights to it",
        },
    ),
    "store/FORMAT.md": Page(shows={"<store>/": "(a picture)"}),
}

PYTHON = {
    "docs/extending.md": "tests/test_extending.py",
}
"""Pages whose Python, and SQL, other tests run and hold to numbers."""
