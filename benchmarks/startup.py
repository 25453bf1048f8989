"""How long the command line takes to start: `python benchmarks/startup.py [--quick] [--json]`.

Whole processes, started in turn in paired rounds: a bare interpreter, one that imports click, and layercache's
`--help`, `ls` and a first SQL query on the sample store. Medians, and the ratio to the bare interpreter.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import _options

SAMPLE = Path(__file__).parents[1] / "store"
LAYERCACHE = [sys.executable, "-m", "layercache"]
COMMANDS: dict[str, list[str]] = {
    "python": [sys.executable, "-c", "pass"],
    "python, again": [sys.executable, "-c", "pass"],
    "python, click": [sys.executable, "-c", "import click"],
    "layercache --help": [*LAYERCACHE, "--help"],
    "layercache ls": [*LAYERCACHE, "ls", "--store", str(SAMPLE)],
    "layercache sql": [*LAYERCACHE, "sql", "SELECT count(*) FROM runs", "--store", str(SAMPLE)],
}
KEYS = {"python, again": "a_over_a", "layercache --help": "help_over_python", "layercache ls": "ls_over_python"}
KEYS["layercache sql"] = "sql_over_python"


def seconds(command: list[str]) -> float:
    """Wall-clock seconds of one whole process."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    options = _options.parser(__doc__, "fewer rounds").parse_args()
    rounds = [
        {name: seconds(command) for name, command in COMMANDS.items()} for _ in range(1 + (5 if options.quick else 15))
    ][1:]
    print(f"{'command':22} {'median ms':>10} {'ratio to python':>16} {'spread':>8}")
    figures = {}
    for name in COMMANDS:
        ratios = [one[name] / one["python"] for one in rounds]
        middle = statistics.median(ratios)
        low, _, high = statistics.quantiles(ratios, n=4)
        print(
            f"{name:22} {1000 * statistics.median(one[name] for one in rounds):10.0f} {middle:16.2f} {(high - low) / 2:8.2f}"
        )
        if name in KEYS:
            figures[KEYS[name]] = round(middle, 3)
    figures["help_seconds"] = round(statistics.median(one["layercache --help"] for one in rounds), 3)
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
