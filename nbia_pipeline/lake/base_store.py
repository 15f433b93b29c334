"""What a disk and an object store have in common as the place of a lake. What goes wrong is an OSError."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, BinaryIO

Record = Callable[["str | None"], str]
"""Writes an entry of the journal, given the name of a staged directory or None, and returns the path of the entry."""
BeforeReplacing = Callable[[], object]
"""Called before files of a series are replaced in place, which no receipt may describe any more from then on."""

MISSING = (FileNotFoundError, NotADirectoryError)  # the second below a file, where nothing can be either


class BaseStore:
    """What both stores do in the same way.

    Args:
        fs: an fsspec file system.
        root: path of the lake in it.
    """

    def __init__(self, fs: Any, root: str) -> None:
        self.fs = fs
        self.root = root

    def full(self, path: str) -> str:
        """Return the path of a file in the file system."""
        return f"{self.root.rstrip('/')}/{path}"

    def exists(self, path: str) -> bool:
        """Return whether there is a file or folder."""
        # Not `exists`: for most file systems it is False, too, where they cannot tell.
        try:
            self.fs.info(self.full(path))
        except MISSING:
            return False
        return True

    def read(self, path: str) -> bytes | None:
        """Return the content of a file, None if there is no such file."""
        try:
            content: bytes = self.fs.cat_file(self.full(path))
        except MISSING:
            return None
        return content

    def read_first(self, path: str) -> bytes | None:
        """Return the content of a small file, the first that is read of a lake, None if there is no such file."""
        return self.read(path)

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading, in pieces if need be; it must be there. The caller closes it."""
        file: BinaryIO = self.fs.open(self.full(path), "rb")
        return file

    def remove(self, path: str) -> None:
        """Remove a file; it may be gone already."""
        if self.exists(path):
            self.fs.rm(self.full(path))

    def names_in(self, folder: str) -> list[str]:
        """Return the names of what is in a folder, sorted; none if there is no such folder."""
        try:
            return sorted(_name(entry) for entry in self.fs.ls(self.full(folder), detail=False))
        except MISSING:
            return []

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the sizes in bytes of all files below a folder, by path; none if there is no such folder."""
        found = self.fs.find(self.full(folder), detail=True)
        return {str(name).removeprefix(self.full("")): int(about["size"]) for name, about in found.items()}


def _name(entry: Any) -> str:
    return str(entry).rstrip("/").rsplit("/", 1)[-1]
