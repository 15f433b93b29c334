"""What a disk and an object store have in common as the place of a lake. What goes wrong is an OSError."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, BinaryIO, TypeVar

T = TypeVar("T")

Record = Callable[["str | None"], str]
"""Writes an entry of the journal, given the name of a staged directory or None, and returns the path of the entry."""
Digests = Mapping[str, str]
"""The MD5s of files, in lower-case hex, by their names."""
NO_DIGESTS: Digests = {}
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

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """Return some bytes of a file, fewer where it ends before; it must be there."""
        content: bytes = self.fs.cat_file(self.full(path), start=offset, end=offset + length)
        return content

    def read_first(self, path: str) -> bytes | None:
        """Return the content of a small file, the first that is read of a lake, None if there is no such file."""
        return self.read(path)

    def read_all(self, paths: Iterable[str]) -> Iterator[tuple[str, bytes | None]]:
        """Yield some paths, and the content of each file, None if there is no such file."""

        def read(path: str) -> tuple[str, bytes | None]:
            return path, self.read(path)

        return self.side_by_side(partial(read, path) for path in paths)

    def side_by_side(self, calls: Iterable[Callable[[], T]]) -> Iterator[T]:
        """Yield what some calls return that read files, in their order; an object store answers several at a time."""
        return (call() for call in calls)

    def open(self, path: str, size: int | None = None) -> BinaryIO:
        """Open a file for reading, in pieces if need be; it must be there. The caller closes it.

        Args:
            path: of the file.
            size: of the file in bytes, if it is known: an object store need not be asked for it.
        """
        file: BinaryIO = self.fs.open(self.full(path), "rb")
        return file

    def remove(self, path: str) -> None:
        """Remove a file; it may be gone already."""
        with suppress(*MISSING):
            self.fs.rm_file(self.full(path))

    def remove_all(self, paths: Iterable[str]) -> None:
        """Remove some files; they may be gone already."""
        for path in paths:
            self.remove(path)

    def names_in(self, folder: str) -> list[str]:
        """Return the names of what is in a folder, sorted; none if there is no such folder."""
        try:
            found = (str(entry).strip("/") for entry in self.fs.ls(self.full(folder), detail=False))
            # Stores list an object for the folder itself, where one was left that has no content.
            return sorted(entry.rpartition("/")[2] for entry in found if entry != self.full(folder).strip("/"))
        except MISSING:
            return []
