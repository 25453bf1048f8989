"""Documents are tests: what they say is what is there."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import click
import pytest

from layercache import recipe, resources
from layercache.cli import COMMANDS, cli
from layercache.store import sql, views

ROOT = Path(__file__).parents[1]


def _script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_line_reference_is_current() -> None:
    assert (ROOT / "docs" / "cli.md").read_text() == _script("generate_cli").reference(), (
        "run: python docs/generate_cli.py"
    )


def test_the_table_of_metrics_is_current() -> None:
    page = _script("generate_metrics").page()
    assert (ROOT / "docs" / "analyses.md").read_text() == page, "run: python docs/generate_metrics.py"


@pytest.mark.parametrize("kind", sorted(recipe.ANALYSES))
def test_every_analysis_has_a_section(kind: str) -> None:
    assert f"\n## {kind}: " in (ROOT / "docs" / "analyses.md").read_text()


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_and_stands_in_the_readme(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.help
    assert command.name == name
    assert f"layercache {name}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    "document", sorted(path.relative_to(ROOT).as_posix() for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")])
)
def test_links_between_documents_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text()
    links = [
        link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith(("http", "#"))
    ]
    assert [link for link in links if not ((ROOT / document).parent / link).exists()] == []


def test_readme_names_only_recipes_and_queries_that_ship() -> None:
    text = (ROOT / "README.md").read_text()
    recipes = set(re.findall(r"layercache run ([a-z_]+)(?![a-z_.])", text))
    queries = set(re.findall(r"--query ([a-z_]+)", text))
    assert recipes
    assert recipes <= set(resources.names("pipelines"))
    assert queries
    assert queries <= set(resources.names("queries"))


def test_the_queries_of_the_page_about_sql_answer() -> None:
    text = (ROOT / "docs" / "sql.md").read_text()
    queries = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    assert len(queries) >= 3
    for query in queries:
        assert sql.run_query(ROOT / "store", query).num_rows > 0, query
    table = text[text.index("| table |") : text.index("All of them")]
    assert set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines() if line))) == set(
        views.VIEWS
    )


def test_the_queries_of_the_cookbook_answer() -> None:
    queries = re.findall(r"```sql\n(.*?)```", (ROOT / "docs" / "cookbook.md").read_text(), re.DOTALL)
    assert len(queries) >= 20
    for query in queries:
        answer = sql.run_query(ROOT / "store", query)
        assert answer.num_rows > 1, query
        empty = [name for name in answer.column_names if answer[name].null_count == answer.num_rows]
        assert empty == [], query


@pytest.mark.parametrize("package", ["", "store", "extract", "analyze"])
def test_the_page_about_how_it_is_built_names_every_module(package: str) -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    folder = ROOT / "layercache" / package
    rooms = text[text.index("## The rooms") : text.index("## Where to put")]
    named = set(re.findall(r"`(\w+)(?:\.py|/)?`", rooms))
    modules = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("__")}
    opened = tuple(re.findall(r"`(\w+_)…`", rooms))
    assert {name for name in modules - named if not name.startswith(opened)} == set()
    packages = {path.parent.name for path in (ROOT / "layercache").glob("*/__init__.py")}
    assert {name for name in packages if f"`{name}/`" not in text} == set()


def test_the_tables_of_recipe_keys_are_current_and_whole() -> None:
    page = _script("generate_recipes").page()
    assert (ROOT / "docs" / "recipes.md").read_text() == page, "run: python docs/generate_recipes.py"
    assert [line for line in page.splitlines() if line.startswith("| `") and line.endswith("|  |")] == []
