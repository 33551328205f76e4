"""The page's files put into one: the template, the style, the modules of web/, uPlot and the data.

There is no build step. The modules of web/ are plain ES modules that import names from one another. They
are written into one script in the order of ``MODULES``, without their ``import`` lines and the word
``export``; so every name at the top of a module must differ from those of all others, and every import must
stand on a line (or several) that begins with ``import`` and ends with a semicolon.
"""

from __future__ import annotations

import html
import re
from importlib.resources import files

MODULES = (
    "data",
    "random",
    "edits",
    "residual",
    "simulate",
    "trust",
    "answer",
    "worker",
    "state",
    "elements",
    "controls",
    "curves",
    "figures",
    "rankings",
    "app",
)
"""Those that others import come first."""

_IMPORT = re.compile(r"^import .*?;\n", re.MULTILINE | re.DOTALL)
_EXPORT = re.compile(r"^export ", re.MULTILINE)


def script() -> str:
    """All modules as one script, for the page and for its worker."""
    return "\n".join(_EXPORT.sub("", _IMPORT.sub("", _read("web", f"{name}.js"))) for name in MODULES)


def filled(title: str, data: str) -> str:
    """The page; data : JSON in which no "<" stands."""
    parts = {
        "title": html.escape(title),
        "style": _read("vendor", "uPlot.min.css") + _read("web", "style.css"),
        "uplot": f"/*\n{_read('vendor', 'uPlot.LICENSE')}*/\n{_read('vendor', 'uPlot.iife.min.js')}",
        "script": script(),
        "data": data,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _read("web", "template.html"))


def _read(folder: str, name: str) -> str:
    return (files("simfluence.explore") / folder / name).read_text(encoding="utf-8")
