"""The options that every benchmark has."""

import argparse


def parser(doc: str | None, quick: str) -> argparse.ArgumentParser:
    """Return a parser with `--quick` and `--json`; `quick` says what the first one leaves out."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help=quick)
    made.add_argument("--json", action="store_true", help="the last line is one JSON object of figures")
    return made
