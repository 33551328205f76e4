"""The modules of simfluence.runs import each other in one direction only (imports inside functions count)."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import simfluence.runs

FOLDER = Path(simfluence.runs.__file__).parent
PACKAGE = "simfluence.runs"


def imported(file: Path) -> set[str]:
    """The modules of the package that a file imports, wherever in the file it does."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith(f"{PACKAGE}."):
            found.add(str(node.module).removeprefix(f"{PACKAGE}."))
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix(f"{PACKAGE}.") for alias in node.names}
    return found


def test_no_import_circle() -> None:
    modules = {file.stem: imported(file) for file in FOLDER.glob("*.py") if file.stem != "__init__"}
    order = list(TopologicalSorter(modules).static_order())  # raises CycleError
    assert order.index("run") < order.index("storage") < order.index("runset")
    for importer in ("long_table", "gptfluence"):
        assert order.index(importer) < order.index("runset")
        assert "runset" not in modules[importer]
