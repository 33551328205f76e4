"""How long the page of `simfluence explore` takes to answer, on made-up simulators of two sizes, under node.

    python analysis/benchmarks/page.py

Two members with training dynamics, the dearest of simulators; the median of twelve answers. Seconds depend
on the machine: both sizes are measured in one run, the larger one also as a multiple of the smaller.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

from simfluence.explore.inline import script

HERE = Path(__file__).parent
SIZES = {
    "200 training x 100 test examples, 60 steps": {"train": 200, "test": 100, "steps": 60},
    "5000 training x 100 test examples, 1875 steps": {"train": 5000, "test": 100, "steps": 1875},
}


def milliseconds(**size: int) -> float:
    """The median time of an answer."""
    names, body = ", ".join(size), (HERE / "page.js").read_text()
    given = json.dumps(json.dumps(size))
    code = f"\nconsole.log(JSON.stringify((({{{names}}}) => {{ {body} }})(JSON.parse({given}))));\n"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.mjs"
        file.write_text(script() + code)
        return float(subprocess.run(["node", file], check=True, capture_output=True, text=True).stdout)


def main() -> None:
    found = {name: milliseconds(**size) for name, size in SIZES.items()}
    smallest = min(found.values())
    lines = ["| size | milliseconds an answer | times the smallest |", "|---|---|---|"]
    lines += [f"| {name} | {value:.0f} | {value / smallest:.1f} |" for name, value in found.items()]
    text = "\n".join(["How long the page takes to answer (`analysis/benchmarks/page.py`).", "", *lines, ""])
    (HERE / "page.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
