"""Writes the tables of keys in docs/recipes.md: python docs/generate_recipes.py."""

import inspect
from pathlib import Path

from pydantic_core import PydanticUndefined

from layercache import recipe
from layercache.recipe import keys
from layercache.recipe.base import Spec

PAGE = Path(__file__).parent / "recipes.md"
HEADING = "## Every key\n"
TABLES: list[tuple[str, type[Spec]]] = [
    ("the recipe itself", recipe.Recipe),
    ("[[models]]", recipe.ModelSpec),
    ("[[data]]", recipe.DataSpec),
    ("[extract]", recipe.ExtractSpec),
    ("[finetune]", recipe.FinetuneSpec),
    *((f'[[analyze]] kind = "{name}"', kind) for name, kind in recipe.ANALYSES.items()),
    ("[report]", recipe.ReportSpec),
]


def page() -> str:
    """Return the page with the keys of every table below its last heading."""
    before = PAGE.read_text(encoding="utf-8").partition(HEADING)[0]
    return before + HEADING + "\n" + "\n".join(_table(title, kind) for title, kind in TABLES)


def _table(title: str, kind: type[Spec]) -> str:
    lines = [f"### `{title}`\n", inspect.getdoc(kind) or "", "\n| key | when not given | meaning |\n|---|---|---|"]
    meanings = keys.meanings(kind)
    for name, field in kind.model_fields.items():
        if name == "kind":
            continue
        default = field.get_default(call_default_factory=True)
        bar = "\\|"
        shown = "required" if default is PydanticUndefined else _shown(default)
        lines.append(f"| `{name}` | {shown} | {meanings.get(name, '').replace('|', bar)} |")
    return "\n".join(lines) + "\n"


def _shown(default: object) -> str:
    if default is None or isinstance(default, Spec) or default == []:
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    text = f'"{default}"' if isinstance(default, str) else str(default).replace("'", '"')
    return f"`{text}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
