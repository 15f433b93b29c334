"""Where tests have their lakes: in a directory, or in an object store that runs on this machine while they do.

Tests look into both with the methods of pathlib, and into both with DuckDB.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import duckdb
import fsspec
import pytest
from upath import UPath

from nbia_pipeline.address import is_uri
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.layout import LOCKS
from nbia_pipeline_tests.helpers.object_stores import make_bucket, moto_server, seaweedfs, weed

Place: TypeAlias = Path | UPath
"""A directory, or a prefix of an object store; `str` makes the address of a lake of it."""

DISK = "disk"
STORES = {"seaweedfs": seaweedfs, "moto": moto_server}
INSTALLED = {"seaweedfs": lambda: weed() is not None, "moto": lambda: find_spec("moto") is not None}
WHERE = ("place", "memory")
"""For fixtures that give a lake in a place, and one in a store in the memory of the process."""


class Stores:
    """The object stores of this process, each of which is started when a test first needs it.

    Args:
        stack: stops them.
        make_folder: makes an empty directory, given what its name begins with.
    """

    def __init__(self, stack: ExitStack, make_folder: Callable[[str], Path]) -> None:
        self._stack = stack
        self._make_folder = make_folder
        self._started: dict[str, tuple[dict[str, str], str]] = {}
        self._last = ""

    def new_place(self, kind: str, patch: pytest.MonkeyPatch) -> Place:
        """Return an empty place in a store of that kind, and set the variables that lead to it."""
        if not INSTALLED[kind]():
            pytest.skip(f"{kind} is not installed")
        if kind not in self._started:
            variables = self._stack.enter_context(STORES[kind](self._make_folder(kind)))
            self._started[kind] = variables, make_bucket(variables, "tests")
        variables, bucket = self._started[kind]
        for name, value in variables.items():
            patch.setenv(name, value)
        if self._last != kind:
            self._last = kind
            _forget_connections()
        return place_at(f"{bucket}/{uuid.uuid4().hex[:12]}")


def _forget_connections() -> None:
    """Let packages read the variables again, which they do once in a process."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    read_stores(duckdb)


def read_stores(reader: Any) -> Any:
    """Let a connection of DuckDB read object stores as the lake does; return the connection."""
    if reader.filesystem_is_registered("s3"):
        reader.unregister_filesystem("s3")
    reader.register_filesystem(fsspec.filesystem("s3", use_listings_cache=False))
    return reader


def place_at(address: str, *below: str) -> Place:
    """Return the place of an address of a lake, or of a path in that lake."""
    place: Place = UPath(address, use_listings_cache=False) if is_uri(address) else Path(address)
    return place.joinpath(*below)


def relative(path: Place, place: Place) -> str:
    """Return the path of a file or folder below a place, with ``/``."""
    return str(path).removeprefix(f"{place}/").rstrip("/")


def path_in(place: Place) -> str:
    """Return the path of a place, for readers that are given :func:`file_system_of`."""
    return str(place) if isinstance(place, Path) else place.path


def file_system_of(place: Place) -> Any:
    """Return the file system of a place, for readers that ask for one; None for a disk."""
    return None if isinstance(place, Path) else place.fs


def lake_in(place: Place, where: str) -> Lake:
    """Return an empty lake, for the parameters in ``WHERE``."""
    return Lake(str(place / "lake") if where == "place" else f"memory://lake-{uuid.uuid4().hex}")


def files_below(place: Place) -> list[Place]:
    """Return the files below a place; none if there is no such place."""
    if isinstance(place, Path):
        return [path for path in place.rglob("*") if not path.is_dir()]
    return [place_at(place.fs.unstrip_protocol(name)) for name in place.fs.find(place.path)]


def copied(lake: Path, place: Place) -> Lake:
    """Copy a lake on a disk to a place, without the files of its locks; return the copy."""
    if isinstance(place, Path):
        shutil.copytree(lake, place)
    else:
        for path in files_below(lake):
            if not (name := relative(path, lake)).startswith(LOCKS):
                (place / name).write_bytes(path.read_bytes())
    return Lake(str(place))
