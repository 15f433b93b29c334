"""The values that operations take: UIDs, days and moments, columns of series."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from nbia_pipeline.embedded.catalog.model import CATALOG_SCHEMA
from nbia_pipeline.embedded.control.client import Day, Uids

_KEYS = ("SeriesInstanceUID", "Collection")


class OperationError(ValueError):
    """An operation that cannot be carried out; the text is the reason."""


def checked_values(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return new values of columns as Arrow wants them.

    Raises:
        OperationError: for a column that is not there or cannot be changed, or a value that does not fit.
    """
    unknown = sorted(set(columns) - set(CATALOG_SCHEMA.names))
    if unknown:
        raise OperationError(f"the catalog has no column {unknown[0]}; it has {', '.join(CATALOG_SCHEMA.names)}")
    fixed = sorted(set(columns) & set(_KEYS))
    if fixed:
        raise OperationError(f"{fixed[0]} of a series cannot be changed")
    return {name: _typed(name, value) for name, value in columns.items()}


def listed(series: Uids) -> list[str]:
    """Return UIDs in order, each once."""
    return [series] if isinstance(series, str) else list(dict.fromkeys(series))


def moment_of(day: Day) -> dt.datetime:
    """Return a naive moment; a day is its midnight.

    Raises:
        OperationError: for a text that is neither.
    """
    if isinstance(day, str):
        try:
            day = dt.datetime.fromisoformat(day)
        except ValueError as error:
            raise OperationError(f"{day!r} is not a day or a moment in ISO 8601") from error
    if isinstance(day, dt.datetime):
        return day.replace(tzinfo=None)
    return dt.datetime(day.year, day.month, day.day)  # noqa: DTZ001 - the server's times are naive


def _typed(column: str, value: Any) -> Any:
    """Return the value of a column as Arrow wants it; times may come as text."""
    kind = CATALOG_SCHEMA.field(column).type
    if value is None:
        return None
    if pa.types.is_timestamp(kind):
        return moment_of(value)
    if pa.types.is_date(kind):
        return moment_of(value).date()
    try:
        return pa.scalar(value, kind).as_py()
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise OperationError(f"{value!r} does not fit into the column {column} ({kind})") from error
