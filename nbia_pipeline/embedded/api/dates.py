"""Parse the dates in requests as leniently as the server does.

Server: v1, v2 and the unversioned endpoints parse with the JDK's lenient ``SimpleDateFormat``, which
carries days and months over instead of rejecting them, so that a date in the wrong order means another
day. v4 leaves the work to SQL's ``STR_TO_DATE``.
"""

from __future__ import annotations

import re
from datetime import date, datetime, timedelta

# Lenient: white space before each number, no bounds on it, anything after the last one.
_NUMBERS = re.compile(r"[ \t]*(-?[0-9]{1,9})/[ \t]*(-?[0-9]{1,9})/[ \t]*(-?[0-9]{1,9})")
_US_DAY = re.compile(r"([0-9]{1,2})-([0-9]{1,2})-([0-9]{4})")


def day_first(text: str) -> datetime | None:
    """Parse ``dd/MM/yyyy`` (v1, v2 getUpdatedSeries) leniently; None if unparsable."""
    match = _NUMBERS.match(text)
    return None if match is None else _carried(*(int(n) for n in reversed(match.groups())))


def year_first(text: str) -> datetime | None:
    """Parse ``yyyy/MM/dd`` (v1, v2 New... endpoints) leniently; None if unparsable."""
    match = _NUMBERS.match(text)
    return None if match is None else _carried(*(int(n) for n in match.groups()))


def month_first(text: str) -> datetime | None:
    """Parse ``MM-dd-yyyy`` (v4) strictly; None for any other shape and for days that do not exist."""
    match = _US_DAY.fullmatch(text)
    if match is None:
        return None
    month, day, year = (int(n) for n in match.groups())
    try:
        return datetime(year, month, day)  # noqa: DTZ001 - the server's times are naive
    except ValueError:
        return None


def _carried(year: int, month: int, day: int) -> datetime:
    """Carry months over into years and days into months; clip what lies outside Python's calendar."""
    year, month = year + (month - 1) // 12, (month - 1) % 12 + 1
    first = date(min(max(year, date.min.year), date.max.year), month, 1)
    try:
        moved = first + timedelta(days=day - 1)
    except OverflowError:
        moved = date.max if day > 0 else date.min
    return datetime(moved.year, moved.month, moved.day)  # noqa: DTZ001 - the server's times are naive
