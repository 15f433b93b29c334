"""Where the errors of a file system's package end: whatever it raises, only an OSError without secrets leaves.

Packages for fsspec translate some errors of the libraries below them, and let others pass: of botocore, aiohttp,
google-auth, azure-core, paramiko. They have no class in common, so all are caught here, at the calls to the package
and nowhere else: an error of our own code is never taken for one of the store.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, TypeVar

from nbia_pipeline.address import HIDDEN, without_secrets

T = TypeVar("T")

CONNECTIONS = 32
"""To an object store, of one process."""

_CHANGED = ("LastModified", "last_modified", "mtime", "updated", "created")

Run = Callable[..., Any]
"""Calls its first argument with the others, and translates what that raises."""

# Where the packages take secrets from.
_SECRET_VARIABLE = re.compile(
    "(AWS|AZURE|GOOGLE|GCS|FSSPEC|MINIO)_.*(SECRET|TOKEN|PASSW|_KEY$|CONNECTION_STRING|SAS)", re.IGNORECASE
)
_SHORTEST_SECRET = 8

# How the stores refuse to create an object that is there, or that another is creating: as names of classes, codes, and
# statuses. s3fs makes an OSError with a number of it, except where the answer names the condition, as AWS does.
_REFUSALS = {
    *("FileExistsError", "PreconditionFailed", "412"),
    *("ConditionalRequestConflict", "OperationAborted"),  # S3: at the same time as another
    *("ResourceExistsError", "ResourceModifiedError", "BlobAlreadyExists", "ConditionNotMet"),  # Azure
    *("LeaseIdMissing", "LeaseAlreadyPresent"),  # Azure: another holds a lease of the object
}

# Answers rather than failures: callers ask for them.
_MEANT = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)


class StorageError(OSError):
    """An error of a store that is no OSError, or that quotes a secret.

    Attributes:
        kinds: names of the classes of the error and of its causes, outermost first.
        codes: what :func:`codes_of` returns.
    """

    def __init__(self, error: BaseException) -> None:
        text = safe_text(error)
        super().__init__(f"{type(error).__name__}: {text}" if text else type(error).__name__)
        self.kinds = kinds_of(error)
        self.codes = codes_of(error)


def translated(call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Return what a function of a file system's package returns.

    Raises:
        OSError: it failed; any other error, and any that quotes a secret, is a :class:`StorageError`.
    """
    try:
        return call(*args, **kwargs)
    except Exception as e:
        quotes = any(_hidden(text) != text for link in _chain(e) for text in (str(link), repr(link)))
        if isinstance(e, OSError) and not quotes:
            raise
        meant = next((kind for kind in _MEANT if isinstance(e, kind)), None)
        problem = meant(safe_text(e)) if meant else StorageError(e)
        # The cause is kept for its traceback, unless it would bring the secret into logs.
        problem.__cause__ = None if quotes else e
    raise problem  # out here, where it has no context


class NoAnswer(TimeoutError):
    """A store gave no answer for too long."""


class NoStore(OSError):
    """What answered is no store, but a web server."""


def options_of(scheme: str) -> dict[str, Any]:
    """Return the options of the file system of a URI that its package does not take from the environment."""
    if scheme not in ("s3", "s3a"):
        return {}
    # botocore takes the region from AWS_DEFAULT_REGION only, unlike the other tools of AWS, and has 10 connections.
    region = os.environ.get("AWS_REGION")
    return {
        "config_kwargs": {"max_pool_connections": CONNECTIONS},
        **({"client_kwargs": {"region_name": region}} if region else {}),
    }


class Guarded:
    """A file system or an open file whose methods are called through `run`; so are those of files that it opens."""

    def __init__(self, target: Any, run: Run = translated) -> None:
        self._target = target
        self._run = run

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if not callable(found):
            return found

        def method(*args: Any, **kwargs: Any) -> Any:
            result = self._run(found, *args, **kwargs)
            return Guarded(result, self._run) if name == "open" else result

        return method

    def __enter__(self) -> Guarded:
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._target.close)


def changed_at(about: Mapping[str, Any]) -> float | None:
    """Return when an object was written, in seconds since 1970 by the clock of its store; None if that is not told.

    Args:
        about: what `ls` and `find` say of it; s3fs, adlfs, gcsfs and fsspec itself name the time differently.
    """
    value = next((about[key] for key in _CHANGED if about.get(key)), None)
    if isinstance(value, str):
        value = datetime.fromisoformat(value.replace("Z", "+00:00"))
    if isinstance(value, datetime):
        return value.timestamp()
    return float(value) if isinstance(value, int | float) else None


def kinds_of(error: BaseException) -> list[str]:
    """Return the names of the classes of an error and of its causes, outermost first."""
    return [*getattr(error, "kinds", ()), *(type(link).__name__ for link in _chain(error))]


def codes_of(error: BaseException) -> set[str]:
    """Return the codes and the HTTP statuses that a store gave for an error and its causes."""
    found: set[str] = set(getattr(error, "codes", ()))
    for link in _chain(error):
        answer = getattr(link, "response", None)  # of botocore a dictionary; of azure-core, an object
        if isinstance(answer, dict):
            # A web page has none.
            found.add(str(answer.get("Error", {}).get("Code") or "NoCode"))
            found.add(str(answer.get("ResponseMetadata", {}).get("HTTPStatusCode")))
        for name in ("code", "status", "status_code", "error_code"):  # gcsfs, google-api-core, aiohttp; azure-core
            value = getattr(link, name, None)
            found.add(str(getattr(value, "value", value)))
    return found - {"None"}


def refusal(fs: Any, path: str, content: bytes) -> OSError | None:
    """Create an object if there is none; return why not, if there is one or another is being created.

    Raises:
        OSError: anything else went wrong.
    """
    try:
        fs.pipe_file(path, content, mode="create")
    except OSError as e:
        if not was_refused(e):
            raise
        return e
    return None


def was_refused(error: BaseException) -> bool:
    """Return whether a store refused to create an object, as it was asked to if there is one."""
    return not _REFUSALS.isdisjoint({*kinds_of(error), *codes_of(error)})


def safe_text(error: BaseException) -> str:
    """Return the text of an error with stars for secrets: those of URLs, and those of the environment."""
    return _hidden(str(error))


def _hidden(text: str) -> str:
    text = without_secrets(text)
    for variable, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _SECRET_VARIABLE.match(variable):
            text = text.replace(value, HIDDEN)
    return text


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what caused it."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__
