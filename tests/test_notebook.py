"""The notebook runs from its first cell to its last, and what is shown in it is of such a run."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "walkthrough.ipynb"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    committed = nbformat.read(NOTEBOOK, as_version=4)
    fresh = nbformat.read(NOTEBOOK, as_version=4)
    for cell in fresh.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    # An error in a cell raises CellExecutionError.
    NotebookClient(fresh, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert list(tmp_path.iterdir()) == [], "the notebook writes where it is executed"
    for before, after in zip(committed.cells, fresh.cells, strict=True):
        if before.cell_type == "code":
            assert _kinds(before) == _kinds(after), before.source


def _kinds(cell: nbformat.NotebookNode) -> list[tuple[str, ...]]:
    """Return what a cell shows: text it prints, tables, pictures. Warnings of libraries do not count."""
    shown = [output for output in cell.outputs if output.get("name") != "stderr"]
    return [(output.output_type, *sorted(output.get("data", {}))) for output in shown]
