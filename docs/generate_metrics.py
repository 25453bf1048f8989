"""Writes the table of metrics at the end of docs/analyses.md: python docs/generate_metrics.py."""

from pathlib import Path

from layercache.analyze.metrics import METRICS

PAGE = Path(__file__).parent / "analyses.md"
HEADING = "## Every metric\n"


def page() -> str:
    """Return the page with the table of METRICS below its last heading."""
    lines = [f"| `{name}` | {meaning} |" for name, meaning in METRICS.items()]
    before = PAGE.read_text(encoding="utf-8").partition(HEADING)[0]
    return before + HEADING + "\n| metric | what it is |\n|---|---|\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
