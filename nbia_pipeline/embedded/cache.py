"""Rendered answers kept on disk, so that a large list is rendered once and then only copied."""

from __future__ import annotations

import hashlib
import itertools
import shutil
import tempfile
import threading
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import BinaryIO

LARGE_BYTES = 1_000_000
"""Answers above this size are kept."""

CHUNK_BYTES = 1024 * 1024
"""Bytes read from disk at a time."""


class AnswerCache:
    """A directory of rendered answers, owned by one server and removed with it."""

    def __init__(self) -> None:
        self._directory: Path | None = None
        self._lock = threading.Lock()
        self._serial = itertools.count()

    def find(self, key: Hashable) -> Iterator[bytes] | None:
        """Return the pieces of a kept answer, or None if it is not kept."""
        if self._directory is None:
            return None
        try:
            # Opened here rather than at the first piece: a later removal cannot hurt it.
            file = self._path(key).open("rb")
        except FileNotFoundError:
            return None
        return _pieces_of(file)

    def keep(self, key: Hashable, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Yield `pieces` unchanged, and keep them under `key` if they are many and all were taken."""
        held: list[bytes] = []
        size = 0
        for piece in pieces:
            held.append(piece)
            size += len(piece)
            yield piece
            if size > LARGE_BYTES:
                yield from self._spill(key, held, pieces)
                return

    def close(self) -> None:
        """Remove the directory."""
        with self._lock:
            if self._directory is not None:
                shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def _spill(self, key: Hashable, held: list[bytes], rest: Iterator[bytes]) -> Iterator[bytes]:
        path = self._path(key)
        temporary = path.with_suffix(f".{next(self._serial)}")
        try:
            with temporary.open("wb") as file:
                file.writelines(held)
                held.clear()
                for piece in rest:
                    file.write(piece)
                    yield piece
            temporary.replace(path)
        finally:
            # Still there only if the caller went away half-way.
            temporary.unlink(missing_ok=True)

    def _path(self, key: Hashable) -> Path:
        with self._lock:
            if self._directory is None:
                self._directory = Path(tempfile.mkdtemp(prefix="nbia-answers-"))
            return self._directory / hashlib.sha256(repr(key).encode()).hexdigest()


def _pieces_of(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while piece := file.read(CHUNK_BYTES):
            yield piece
