"""An object store in memory that fails as a test wants: with the exceptions of packages that need not be installed."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

PROTOCOL = "failing"
CALLS = (
    "info",
    "ls",
    "find",
    "exists",
    "cat_file",
    "pipe_file",
    "rm",
    "rm_file",
    "put_file",
    "invalidate_cache",
    "open",
)


class Failing(MemoryFileSystem):  # type: ignore[misc]
    """A store whose calls raise what `error` makes for their name, if anything."""

    protocol = PROTOCOL
    cachable = False
    error: Callable[[str], Exception | None] = staticmethod(lambda _: None)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(str(path).removeprefix(f"{PROTOCOL}:/")))


def _failing(name: str) -> Callable[..., Any]:
    def call(self: Failing, *args: Any, **kwargs: Any) -> Any:
        if problem := type(self).error(name):
            raise problem
        return getattr(super(Failing, self), name)(*args, **kwargs)

    return call


for _name in CALLS:
    setattr(Failing, _name, _failing(_name))
fsspec.register_implementation(PROTOCOL, Failing, clobber=True)


def new_address() -> str:
    """Return the address of an empty lake in such a store."""
    return f"{PROTOCOL}://lake-{uuid.uuid4().hex}"


@contextmanager
def failing(error: Callable[[str], Exception | None]) -> Iterator[None]:
    """Let the calls of all such stores raise what `error` makes for their name."""
    before = Failing.error
    Failing.error = staticmethod(error)
    try:
        yield
    finally:
        Failing.error = before


def exception(name: str, text: str, *bases: type[Exception], **attributes: object) -> Exception:
    """Return an exception of a class of that name, as another package would have it."""
    made: Exception = type(name, bases or (Exception,), attributes)(text)
    return made
