"""Which part of the package may import which: what `docs/architecture.md` says, held against every import there is.

Imports within functions count as any other, and so do those for type checkers.
"""

import ast
from pathlib import Path

import pytest

import layercache

PACKAGE = Path(layercache.__file__).parent
PACKAGES = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
GPU = {"torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "tokenizers"}

BELOW = {
    "recipe": set(),
    "store": {"recipe"},
    "analyze": {"store", "recipe"},
    "extract": {"store", "recipe"},
    "hub": {"store"},
    "exchange": {"store", "recipe"},
    "report": {"store", "recipe", "analyze"},
    "drafting": {"recipe", "demo"},
    "demo": {"extract", "recipe"},
}
"""Packages that each one may import; `cli` may import all of them, and none of them `cli`."""

STAGES = {"api", "study", "shell", "transfer", "doctor"}
"""Modules that stand above the packages: only `cli`, and each other, import them."""

NAMED = {
    # Methods of an open store that users know it by: each is imported when it is called.
    ("store/reader.py", "layercache.analyze.lens"),
    ("store/reader.py", "layercache.listing"),
    # `layercache.analyze(…)` is the stage, whatever else was imported.
    ("analyze/__init__.py", "layercache.api"),
    ("extract/__init__.py", "layercache.api"),
    # Where the demo model lies; what trains it stands above `extract`.
    ("extract/checkpoint.py", "layercache.demo"),
    # A program of its own, a process a device, which pairs data sets and models as its parent does.
    ("extract/device_worker.py", "layercache.study"),
    # The library of metrics is an extra, and BERTScore the one metric that is a model.
    ("analyze/bertscore.py", "torch"),
    ("analyze/bertscore.py", "torch.nn.utils.rnn"),
    ("analyze/bertscore.py", "transformers"),
    ("analyze/bertscore.py", "transformers.utils"),
}
"""What is against a rule, and is so for the reason above it."""


def _module(path: Path) -> str:
    return ".".join(["layercache", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")


def imports() -> list[tuple[str, str]]:
    """List every import: the file, and the module or, of a package's modules, the module's whole name."""
    found = []
    modules = {_module(path) for path in PACKAGE.rglob("*.py")}
    for path in sorted(PACKAGE.rglob("*.py")):
        where = path.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found += [(where, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{where}: a relative import"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                found += [(where, name if name in modules else str(node.module)) for name in names]
    return found


IMPORTS = imports()


def _part(name: str) -> str:
    """Return which part of the package a module is in: a package, or a module beside them."""
    return name.split(".")[1] if name.startswith("layercache.") else ""


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_is_below_it(package: str) -> None:
    if package == "cli":
        return
    above = {*PACKAGES, *STAGES} - BELOW[package] - {package}
    own = [(where, name) for where, name in IMPORTS if where.startswith(f"{package}/")]
    assert own
    assert [pair for pair in own if _part(pair[1]) in above and pair not in NAMED] == []


def test_only_what_runs_models_imports_what_runs_them() -> None:
    found = [(where, name) for where, name in IMPORTS if name.split(".")[0] in GPU]
    assert {where.partition("/")[0] for where, _ in found} >= {"extract", "demo"}
    assert [pair for pair in found if not pair[0].startswith(("extract/", "demo/")) and pair not in NAMED] == []


def test_only_the_store_asks_duckdb_and_reads_its_own_files() -> None:
    """Parquet of others is read too: data, what is imported and exported, what a query's answer is written as."""
    found = [
        where for where, name in IMPORTS if name in ("duckdb", "pyarrow.parquet") and not where.startswith("store/")
    ]
    assert sorted(set(found)) == ["exchange/datasets.py", "table.py"]


def test_what_is_named_is_there() -> None:
    assert set(IMPORTS) >= NAMED
