"""The rooms of docs/architecture.md: what each may import, read off the imports themselves."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import nbia_pipeline

ROOT = Path(nbia_pipeline.__file__).parent
PACKAGE = ROOT.name

# From the ground floor up; a room imports its own floor's rooms only if the pair is in BESIDE.
FLOORS = (
    {"_version", "address", "clock", "schema", "stopping", "text", "variables"},
    {"settings"},
    {"archive", "lake", "embedded"},
    {"changes", "connect", "headers", "preview", "reading"},
    {"mirror"},
    {"verify", "errors"},
    {"defs"},
    {"definitions"},
    {"component", "cli"},
    {"__main__", "__init__"},
)
BESIDE = {("schema", "clock"), ("schema", "text")}
# The default configuration starts the embedded archive, and a command serves it.
EXCEPTIONS = {("connect", "embedded"), ("cli", "embedded")}

# A method of the client that writes to a disk imports what does so when it is called, and not before.
DEFERRED = {("archive.bodies", "mirror.download")}

WITH_DAGSTER = {"defs", "definitions", "component", "cli.run"}
FILES_IN_A_FOLDER = 17


def modules() -> dict[str, Path]:
    """Return every module of the package by its name below it."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = path
    return found


MODULES = modules()


def imported(path: Path) -> Iterator[str]:
    """Yield what a module imports anywhere in it, as full names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def dependencies(name: str) -> set[str]:
    """Return the modules of the package that a module imports."""
    names = (n.removeprefix(f"{PACKAGE}.") for n in imported(MODULES[name]) if n.startswith(f"{PACKAGE}."))
    found = {n for n in names if n in MODULES and n != name}
    # A name taken from a module counts as that module; a module taken from a package, as that module only.
    return {n for n in found if not any(other.startswith(f"{n}.") for other in found)} or found


def floor(room: str) -> int:
    """Return the floor of a room."""
    return next(n for n, rooms in enumerate(FLOORS) if room in rooms)


@pytest.mark.parametrize("name", MODULES)
def test_no_arrow_runs_back_up(name: str) -> None:
    room = name.split(".")[0]
    if room in ("__init__", "__main__"):
        return
    for other in dependencies(name):
        target = other.split(".")[0]
        if target == room or (room, target) in EXCEPTIONS | BESIDE or (name, other) in DEFERRED:
            continue
        assert floor(target) < floor(room), f"{name} imports {other}"


def test_no_import_runs_in_a_circle() -> None:
    graph = {name: dependencies(name) for name in MODULES if name != "__init__"}
    for name, other in DEFERRED:
        graph[name].remove(other)
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as e:
        pytest.fail(" -> ".join(e.args[1]))


@pytest.mark.parametrize("name", MODULES)
def test_dagster_stays_in_its_rooms(name: str) -> None:
    if not any(name == room or name.startswith(f"{room}.") for room in WITH_DAGSTER):
        assert not {n for n in imported(MODULES[name]) if n.split(".")[0] == "dagster"}


@pytest.mark.parametrize("name", [n for n in MODULES if n.split(".")[0] == "embedded"])
def test_the_embedded_archive_needs_the_schema_and_nothing_else(name: str) -> None:
    assert {other.split(".")[0] for other in dependencies(name)} <= {"embedded", "schema", "_version"}


def test_no_folder_is_crowded() -> None:
    counts = Counter(path.parent for path in MODULES.values())
    crowded = {str(f.relative_to(ROOT)): n for f, n in counts.items() if n > FILES_IN_A_FOLDER}
    assert not crowded
