"""Documents are tests: what they say is what is there."""

import importlib.util
import re
from pathlib import Path

import click
import pytest

from layercache import resources
from layercache.cli import COMMANDS, cli
from layercache.store import sql, views

ROOT = Path(__file__).parents[1]


def _reference() -> str:
    path = ROOT / "docs" / "generate_cli.py"
    spec = importlib.util.spec_from_file_location("generate_cli", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text: str = module.reference()
    return text


def test_the_command_line_reference_is_current() -> None:
    assert (ROOT / "docs" / "cli.md").read_text() == _reference(), "run: python docs/generate_cli.py"


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
    recipes = set(re.findall(r"layercache run ([a-z_]+)", text))
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
