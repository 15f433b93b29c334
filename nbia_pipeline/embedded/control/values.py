"""The arguments of operations: what they may be, and how the catalog holds them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from nbia_pipeline.embedded.catalog.model import CATALOG_SCHEMA
from nbia_pipeline.embedded.control.client import Day, Uids

_FIXED_COLUMNS = ("SeriesInstanceUID", "Collection")


class OperationError(ValueError):
    """An operation that cannot be carried out; the text is the reason."""


def checked_values(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return new values as Arrow wants them; refuse columns that are not there or fixed, and values that do not fit."""
    unknown = sorted(set(columns) - set(CATALOG_SCHEMA.names))
    if unknown:
        raise OperationError(f"the catalog has no column {unknown[0]}; it has {', '.join(CATALOG_SCHEMA.names)}")
    fixed = sorted(set(columns) & set(_FIXED_COLUMNS))
    if fixed:
        raise OperationError(f"{fixed[0]} of a series cannot be changed")
    return {name: _arrow_value(name, value) for name, value in columns.items()}


def expect_known(names: Iterable[str], known: Iterable[str], kind: str) -> list[str]:
    """Return the names; refuse one that is unknown."""
    listed = [names] if isinstance(names, str) else list(names)
    for name in listed:
        if name not in known:
            raise OperationError(f"there is no {kind} {name!r}; there are {', '.join(known)}")
    return listed


def listed(series: Uids) -> list[str]:
    """Return UIDs in order, each once."""
    return [series] if isinstance(series, str) else list(dict.fromkeys(series))


def moment_of(day: Day) -> dt.datetime:
    """Return a naive moment; a day is its midnight, a text that is neither is refused."""
    if isinstance(day, str):
        try:
            day = dt.datetime.fromisoformat(day)
        except ValueError as error:
            raise OperationError(f"{day!r} is not a day or a moment in ISO 8601") from error
    if isinstance(day, dt.datetime):
        return day.replace(tzinfo=None)
    return dt.datetime(day.year, day.month, day.day)  # noqa: DTZ001 - the server's times are naive


def _arrow_value(column: str, value: Any) -> Any:
    """Return the value of a column as Arrow wants it; times may come as text."""
    kind = CATALOG_SCHEMA.field(column).type
    if value is not None and pa.types.is_temporal(kind):
        moment = moment_of(value)
        return moment.date() if pa.types.is_date(kind) else moment
    try:
        return pa.scalar(value, kind).as_py()
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise OperationError(f"{value!r} does not fit into the column {column} ({kind})") from error
