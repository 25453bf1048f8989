"""The tutorial's commands, one after another, as a reader would type them."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_commands_of_the_tutorial_run(tmp_path: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "tutorial.md").read_text(), re.DOTALL)
    assert len(blocks) >= 8
    commands = (
        "".join(blocks).replace("source .venv/bin/activate", ":").replace("--store store ", f"--store {ROOT}/store ")
    )
    script = f'set -euo pipefail\nlayercache() {{ {sys.executable} -P -m layercache "$@"; }}\n{commands}'
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "films-store" / "report.html").stat().st_size > 100_000
    assert (tmp_path / "probe.svg").read_text().startswith("<svg")
    again = done.stdout[done.stdout.rindex("films.toml") :] if "films.toml" in done.stdout else done.stdout
    assert "0 forward passes" in again or "nothing to run" in again or "no forward pass" in again
