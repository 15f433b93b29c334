"""What the texts of the feed stand for, read without the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _day(text: str) -> Any:
    return datetime.fromisoformat(text).date()


_KINDS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("SeriesNumber", "ImageCount", "FileSize"), int),
    **dict.fromkeys(("TimeStamp", "DateReleased"), _moment),
    **dict.fromkeys(("SeriesDate", "StudyDate"), _day),
    "AnnotationsFlag": {"true": True, "false": False}.__getitem__,
}


def value_of(column: str | None, text: str | None) -> Any:
    """Return the value of a column of ``series`` that a text of the feed stands for."""
    if text is None or column is None:
        return text
    return _KINDS.get(column, str)(text)
