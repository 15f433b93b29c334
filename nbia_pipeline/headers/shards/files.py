"""The first bytes of image files: of a disk one after the other, of an object store several at a time."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Protocol

from nbia_pipeline import stopping
from nbia_pipeline.address import is_uri
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.lake.base_store import MISSING
from nbia_pipeline.lake.layout import IMAGES
from nbia_pipeline.lake.side_by_side import SharedThreads
from nbia_pipeline.text import logger

log = logger(__name__)

HEAD_BYTES = 64 << 10
"""What is read of each file at first; most headers are shorter."""
HEADS_AT_A_TIME = 32
_HEADS = SharedThreads(HEADS_AT_A_TIME, "nbia-heads")

_OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What keeps this process from opening any file, and says nothing about one."""

More = Callable[[int, int], bytes]
"""Returns bytes of a file from an offset, fewer where it ends before or cannot be read."""


class File(Protocol):
    """What is known of a file: its path relative to the lake, and its size in bytes."""

    @property
    def Path(self) -> str: ...  # noqa: D102

    @property
    def Size(self) -> int | None: ...  # noqa: D102


def read_files(lake: Lake, files: Iterable[File], add: Callable[..., object]) -> None:
    """Give files to a function one after the other, each with its first bytes, its size, and a way to read more.

    A file that is gone, or cannot be read, is given with none: what others hold is read all the same.

    Args:
        lake: the lake.
        files: the files.
        add: takes a file, its first bytes, its size in bytes, and :data:`More`, which works until it returns.

    Raises:
        LakeError: the lake cannot be read.
    """
    (_from_store if is_uri(lake.uri) else _from_disk)(lake, files, add)


def _from_disk(lake: Lake, files: Iterable[File], add: Callable[..., object]) -> None:
    root = lake.url("")
    for file in files:
        stopping.expect_running()
        try:
            # Not Lake.open, whose layers would take as long as all the rest.
            descriptor = os.open(root + file.Path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as e:
            _unreadable(lake, file, e)
            add(file, b"", 0, _nothing)
            continue
        try:
            head, size = _head(lake, file, descriptor)
            add(file, head, size, partial(_more, descriptor, file))
        finally:
            os.close(descriptor)


def _head(lake: Lake, file: File, descriptor: int) -> tuple[bytes, int]:
    try:
        head = os.pread(descriptor, HEAD_BYTES, 0)
        return head, len(head) if len(head) < HEAD_BYTES else os.fstat(descriptor).st_size
    except OSError as e:
        _unreadable(lake, file, e)
        return b"", 0


def _unreadable(lake: Lake, file: File, error: OSError) -> None:
    with lake.storage_errors("read image files"):
        if error.errno in _OURS:
            raise error
        Path(lake.url(IMAGES)).stat()  # else no file can be read
    log.info("%s cannot be read: %s", file.Path, error.strerror)


def _more(descriptor: int, file: File, offset: int, length: int) -> bytes:
    try:
        return os.pread(descriptor, length, offset)
    except OSError as e:
        log.info("%s cannot be read from byte %s on: %s", file.Path, offset, e.strerror)
        return b""


def _nothing(offset: int, length: int) -> bytes:
    return b""


def _from_store(lake: Lake, files: Iterable[File], add: Callable[..., object]) -> None:
    def head_of(file: File) -> tuple[File, bytes]:
        return file, _range(lake, file, 0, HEAD_BYTES)

    for file, head in _HEADS.results(partial(head_of, file) for file in files):
        stopping.expect_running()
        size = file.Size if len(head) == HEAD_BYTES else None
        add(file, head, len(head) if size is None else size, partial(_range, lake, file))


def _range(lake: Lake, file: File, offset: int, length: int) -> bytes:
    try:
        return lake.read_range(file.Path, offset, length)
    except LakeError as e:
        if not isinstance(e.__cause__, MISSING):
            raise
        log.info("%s is gone", file.Path)
        return b""
