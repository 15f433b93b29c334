"""A cache of rendered answers on disk: a large list is rendered once and then only copied."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import BinaryIO

from nbia_pipeline.embedded.api.endpoint import Reply
from nbia_pipeline.embedded.catalog.scratch import Scratch

LARGE_BYTES = 1_000_000
"""Answers above this size are cached."""

CHUNK_BYTES = 1024 * 1024
"""Bytes read from disk at a time."""


class AnswerCache:
    """Large answers by key, in a scratch directory."""

    def __init__(self, scratch: Scratch) -> None:
        """Keep answers in `scratch`."""
        self._scratch = scratch
        self._heads: dict[str, tuple[str | None, Reply]] = {}

    def find(self, key: str) -> Reply | None:
        """Return a cached answer, or None."""
        try:
            _, head = self._heads[key]
            # Opened here rather than at the first piece, so that a later removal does no harm.
            file = self._scratch.path(key).open("rb")
        except (KeyError, FileNotFoundError):
            return None
        return replace(head, body=_pieces_of(file))

    def keep(self, key: str, reply: Reply, collection: str | None = None) -> Reply:
        """Return `reply` with the same bytes; it is cached under `key` if it is large and read to its end.

        `collection` is the one that it is about, None for an answer about all of them.
        """
        if isinstance(reply.body, bytes):
            return reply
        return replace(reply, body=self._kept(key, reply, reply.body, collection))

    def forget(self, collections: Iterable[str]) -> None:
        """Remove the answers about `collections`."""
        touched = {name.casefold() for name in collections}
        for key, (collection, _) in list(self._heads.items()):
            if collection is None or collection.casefold() in touched:
                self._heads.pop(key, None)
                self._scratch.path(key).unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget every answer; their files go with the directory."""
        self._heads.clear()

    def _kept(self, key: str, reply: Reply, pieces: Iterator[bytes], collection: str | None) -> Iterator[bytes]:
        buffer: list[bytes] = []
        size = 0
        for piece in pieces:
            buffer.append(piece)
            size += len(piece)
            yield piece
            if size > LARGE_BYTES:
                yield from self._spill(key, buffer, pieces)
                self._heads[key] = collection, replace(reply, body=b"")

    def _spill(self, key: str, buffer: list[bytes], rest: Iterator[bytes]) -> Iterator[bytes]:
        path = self._scratch.path(key)
        temporary = self._scratch.temporary(path)
        try:
            with temporary.open("wb") as file:
                file.writelines(buffer)
                buffer.clear()
                for piece in rest:
                    file.write(piece)
                    yield piece
            # The directory is gone if the answers were forgotten while this one was sent.
            with contextlib.suppress(FileNotFoundError):
                temporary.replace(path)
        finally:
            # It is still there only if the caller went away before the end.
            temporary.unlink(missing_ok=True)


def _pieces_of(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while piece := file.read(CHUNK_BYTES):
            yield piece
