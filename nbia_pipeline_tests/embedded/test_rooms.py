"""The rooms of the embedded archive import each other one way, also for type checkers only.

That there is no circle, and that nothing else is imported: test_architecture.
"""

from __future__ import annotations

import ast
from pathlib import Path

import nbia_pipeline.embedded

ROOT = Path(nbia_pipeline.embedded.__file__).parent
PACKAGE = "nbia_pipeline.embedded"
MAY_IMPORT = {
    "catalog": set(),
    "phantoms": {"catalog"},
    "demo": {"catalog", "phantoms"},
    "api": {"catalog"},
    "control": {"catalog", "phantoms", "api"},
    "server": {"catalog", "api", "control"},
}


def imports(path: Path) -> set[str]:
    """Return the modules of this project that a file imports, wherever in it the import is."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith("nbia_pipeline")}


def test_every_room_imports_only_the_rooms_below_it() -> None:
    rooms = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert rooms == set(MAY_IMPORT)
    for room, allowed in MAY_IMPORT.items():
        for path in (ROOT / room).glob("*.py"):
            used = {name.split(".")[2] for name in imports(path) if name.startswith(f"{PACKAGE}.")}
            assert used <= allowed | {room}, path
