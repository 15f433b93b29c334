"""What an exception shows to whoever looks: its text, its attributes, and those of all that led to it."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator

from dagster._utils.error import serializable_error_info_from_exc_info


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all its causes and contexts, also those that Python would not print."""
    todo, seen = [error], set[int]()
    while todo:
        link = todo.pop()
        if id(link) not in seen:
            seen.add(id(link))
            yield link
            todo += [e for e in (link.__cause__, link.__context__) if e is not None]


def shown(error: BaseException) -> str:
    """Return all texts of an error, and what Dagster would store of it."""
    texts = [text for link in chain(error) for text in (str(link), repr(link), str(vars(link)))]
    try:
        raise error
    except BaseException:  # noqa: BLE001 - it is only looked at
        stored = serializable_error_info_from_exc_info(sys.exc_info())
    return "\n".join([*texts, *traceback.format_exception(error), stored.to_string(), str(stored)])
