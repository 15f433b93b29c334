"""Rendered answers kept on disk, so that a large list is rendered once and then only copied."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import BinaryIO

from nbia_pipeline.embedded.api.endpoint import Reply
from nbia_pipeline.embedded.catalog.scratch import Scratch

LARGE_BYTES = 1_000_000
"""Answers above this size are kept."""

CHUNK_BYTES = 1024 * 1024
"""Bytes read from disk at a time."""


class AnswerCache:
    """Large answers by key, on a shelf."""

    def __init__(self, scratch: Scratch) -> None:
        """Keep answers on `shelf`."""
        self._shelf = scratch
        self._heads: dict[str, tuple[str | None, Reply]] = {}

    def find(self, key: str) -> Reply | None:
        """Return a kept answer, or None if it is not kept."""
        known = self._heads.get(key)
        if known is None:
            return None
        head = known[1]
        try:
            # Opened here rather than at the first piece, so that a later removal cannot hurt it.
            file = self._shelf.path(key).open("rb")
        except FileNotFoundError:
            return None
        return replace(head, body=_pieces_of(file))

    def keep(self, key: str, reply: Reply, collection: str | None = None) -> Reply:
        """Return `reply` unchanged to the eye; it is kept under `key` if it is large and taken to its end.

        Args:
            key: all that the answer depends on.
            reply: the answer.
            collection: the collection that it is about; None for an answer about all of them.
        """
        if isinstance(reply.body, bytes):
            return reply
        return replace(reply, body=self._kept(key, reply, reply.body, collection))

    def forget(self, collections: Iterable[str]) -> None:
        """Remove the answers that tell of `collections`."""
        touched = {name.casefold() for name in collections}
        for key, (collection, _) in list(self._heads.items()):
            if collection is None or collection.casefold() in touched:
                self._heads.pop(key, None)
                # Who reads it at the moment holds it open; where that hinders removal, it goes with the shelf.
                with contextlib.suppress(OSError):
                    self._shelf.path(key).unlink()

    def clear(self) -> None:
        """Forget every answer; their files go with the shelf."""
        self._heads.clear()

    def _kept(self, key: str, reply: Reply, pieces: Iterator[bytes], collection: str | None) -> Iterator[bytes]:
        held: list[bytes] = []
        size = 0
        for piece in pieces:
            held.append(piece)
            size += len(piece)
            yield piece
            if size > LARGE_BYTES:
                yield from self._spill(key, held, pieces)
                self._heads[key] = collection, replace(reply, body=b"")

    def _spill(self, key: str, held: list[bytes], rest: Iterator[bytes]) -> Iterator[bytes]:
        path = self._shelf.path(key)
        temporary = self._shelf.scratch(path)
        try:
            with temporary.open("wb") as file:
                file.writelines(held)
                held.clear()
                for piece in rest:
                    file.write(piece)
                    yield piece
            # The directory is gone if the answers were forgotten while this one was on its way.
            with contextlib.suppress(FileNotFoundError):
                temporary.replace(path)
        finally:
            # Still there only if the caller went away half-way.
            temporary.unlink(missing_ok=True)


def _pieces_of(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while piece := file.read(CHUNK_BYTES):
            yield piece
