"""Read one value of an answer in any of the forms that the archive writes; what does not fit is a ValueError."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

import pyarrow as pa

from nbia_pipeline.schema.tables import COUNT, DAY, FLAG, REAL, TEXT, TIME


@dataclass(frozen=True)
class NoNumber:
    """What stands for a number and is none, like ``NaN`` or ``1e99999999999999999999``: no column takes it."""

    text: str

    def __str__(self) -> str:
        return self.text


_SURROGATE = re.compile("[\ud800-\udfff]")
_LEAST, _MOST = -(2**63), 2**63 - 1


def read_value(raw: object, kind: pa.DataType) -> object:
    """Read a value for a column of type `kind`; None where it is there and empty.

    Raises:
        ValueError: it does not fit; the text says why.
    """
    try:
        return _READERS[kind](raw)
    except OverflowError as e:
        raise ValueError("not a value of a plausible size") from e


def read_values(raw: Sequence[Any], kind: pa.DataType) -> tuple[pa.Array, dict[int, str]]:
    """Read the values of a column of type `kind`; return them, and by number why one does not fit and is null."""
    types = set(map(type, raw)) - {type(None)}
    if types <= {str} and kind == TEXT:
        with suppress(UnicodeEncodeError):
            return pa.array(raw, kind), {}
    why: dict[Any, str] = {}

    def read(key: Any, value: Any) -> Any:
        try:
            return read_value(value, kind)
        except ValueError as e:
            why[key] = str(e)
            return None

    if len(types) == 1 and types <= {str, int, bool}:
        # Equal values of one of these types are read alike, so each is read once.
        known = {value: read(value, value) for value in set(raw) - {None}}
        values = list(map(known.get, raw))
        misfits = {number: why[value] for number, value in enumerate(raw) if value in why} if why else {}
    else:
        values = [None if value is None else read(number, value) for number, value in enumerate(raw)]
        misfits = why
    return pa.array(values, kind), misfits


def read_text(raw: object) -> str:
    """Return a text as it stands; a JSON number is taken by its digits."""
    if isinstance(raw, str):
        # Bytes that are not UTF-8, and halves of a character, are surrogates here; no column can hold them.
        if not raw.isascii() and _SURROGATE.search(raw):
            raise ValueError("not UTF-8")
        return raw
    if isinstance(raw, (int, Decimal)) and not isinstance(raw, bool):
        return str(raw)
    raise ValueError("not a text")


def read_count(raw: object) -> int | None:
    """Read a whole number that comes as a number or as text, like ``12`` or ``"1.000000"``."""
    number = _decimal(raw)
    if number is None:
        return None
    if number != number.to_integral_value():
        raise ValueError("not a whole number")
    if not _LEAST <= number <= _MOST:
        raise ValueError("not a number of 64 bits")
    return int(number)


def read_real(raw: object) -> float | None:
    """Read a number that comes as a number or as text."""
    number = _decimal(raw)
    return None if number is None else float(number)


def _decimal(raw: object) -> Decimal | None:
    if isinstance(raw, bool) or not isinstance(raw, (int, Decimal, str)):
        raise ValueError("not a number")
    if raw == "":
        return None
    if isinstance(raw, str) and ("_" in raw or not raw.isascii()):
        raise ValueError("not a number")  # Python's own notations
    try:
        number = Decimal(raw)
    except InvalidOperation as e:
        raise ValueError("not a number") from e
    if not number.is_finite() or abs(number.adjusted()) > 300:
        raise ValueError("not a number of a plausible size")
    return number


def read_flag(raw: object) -> bool | None:
    """Read a flag: a JSON boolean (v2), or a text (v4, getSeriesMetaData)."""
    if isinstance(raw, bool):
        return raw
    flag = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False, "": None}
    if isinstance(raw, (str, int)) and str(raw).strip().casefold() in flag:
        return flag[str(raw).strip().casefold()]
    raise ValueError("not a flag")


_ISO = re.compile(r"(\d{4})-(\d\d)-(\d\d)(?:[ T](\d\d)(?::(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?)?)?")
_US = re.compile(r"(\d\d)-(\d\d)-(\d{4})")
_JAVA = re.compile(r"[A-Z][a-z]{2} ([A-Z][a-z]{2}) (\d\d) (\d\d):(\d\d):(\d\d) (?:\S+ )?(\d{4})")
_MONTHS = {m: n for n, m in enumerate("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), start=1)}
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - the server states no zone, so no time here has one


def read_time(raw: object) -> datetime | None:
    """Read a time in any of the forms that the archive writes.

    ``2011-11-08 08:08:01.0``, ``2011-11-08``, ``11-08-2011``, ``Tue Nov 08 08:08:01 CST 2011`` and
    milliseconds since 1970. A zone's name is dropped: the server's clock is unknown.
    """
    if isinstance(raw, (int, Decimal)) and not isinstance(raw, bool):
        return _EPOCH + timedelta(milliseconds=float(raw))
    if not isinstance(raw, str):
        raise ValueError("not a date")
    text = raw.strip()
    if not text:
        return None
    if m := _ISO.fullmatch(text):
        year, month, day, hour, minute, second = (int(g or 0) for g in m.groups()[:6])
        micros = int((m[7] or "0").ljust(6, "0")[:6])
        return _moment(year, month, day, hour, minute, second, micros)
    if m := _US.fullmatch(text):
        return _moment(int(m[3]), int(m[1]), int(m[2]))
    if (m := _JAVA.fullmatch(text)) and m[1] in _MONTHS:
        return _moment(int(m[6]), _MONTHS[m[1]], int(m[2]), int(m[3]), int(m[4]), int(m[5]))
    raise ValueError("not a date in any form that the archive is known to write")


def _moment(
    year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0, micros: int = 0
) -> datetime:
    try:
        return datetime(year, month, day, hour, minute, second, micros)  # noqa: DTZ001
    except ValueError as e:
        raise ValueError("not a day or time that exists") from e


def read_day(raw: object) -> date | None:
    """Read a day in any of the forms of :func:`read_time`; a time of day is refused, not dropped."""
    moment = read_time(raw)
    if moment is None:
        return None
    if moment.time() != time():
        raise ValueError("a day with a time of day")
    return moment.date()


_READERS: dict[pa.DataType, Callable[[object], object]] = {
    TEXT: read_text,
    COUNT: read_count,
    REAL: read_real,
    FLAG: read_flag,
    DAY: read_day,
    TIME: read_time,
}
