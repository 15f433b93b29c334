"""From the bytes of an answer to an Arrow table of fixed schema, and whether its rows are those asked for.

Lists arrive as one JSON array, of up to hundreds of megabytes. It is read in pieces: Arrow's JSON reader
takes each piece if it is exactly as the server writes it, and a tolerant reader takes the others (numbers
as text, the guide's spellings, any of the date forms). Both yield the same values.

The server ignores filters silently, so rows that do not satisfy what was asked are an error, not data.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from nbia_pipeline.archive.errors import BadAnswer
from nbia_pipeline.schema.shapes import Form, Shape, normalize
from nbia_pipeline.schema.tables import COUNT, DAY, FLAG, REAL, TEXT, TIME

PIECE_BYTES = 4 << 20
# Threads for the pieces of one answer, while another receives them. Arrow's reader lets them run side by side.
READERS = 2

# Between two objects of the array. A string cannot hold these bytes: its quote would be escaped, or close
# it and be followed by punctuation.
_BETWEEN = re.compile(rb'\},(?=\{"\w)')
_BLANKS = b" \t\r\n"  # JSON knows no others
_FAST_FORMS = {
    Form.TEXT: TEXT,
    Form.NUMBER: COUNT,
    Form.BOOLEAN: FLAG,
    Form.FLAG_TEXT: TEXT,
    Form.DATETIME: TEXT,
    Form.US_DAY: TEXT,
}


def read_json(chunks: Iterable[bytes], shape: Shape) -> pa.Table:
    """Read a JSON array of flat objects, as the list endpoints send it.

    Args:
        chunks: the body in pieces of any size; an empty body means no rows (server: never ``[]``).
        shape: the keys that the endpoint sends.

    Returns:
        A table of the shape's schema; omitted keys are null.

    Raises:
        BadAnswer: the body is not such an array, ends early, or a value does not fit its column.

    Server: where it fails at a row, it closes the array there and answers 200. That looks like a
    shorter list; only what was known of the list before can show it.
    """
    schema = shape.schema

    def read(piece: bytes) -> pa.Table:
        try:
            return _read_fast(piece, shape, schema)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return _read_tolerantly(piece, shape, schema)

    batches = list(_in_parallel(read, _pieces(chunks)))
    table = pa.concat_tables(batches) if batches else schema.empty_table()
    _expect_identity(table, shape)
    return table


def read_csv(text: str, shape: Shape) -> pa.Table:
    """Read the quoted CSV that the metadata endpoints send; an empty cell is null.

    Raises:
        BadAnswer: the header has none of the shape's keys, a row has another number of cells, or a cell does not
            end.
    """
    schema = shape.schema
    if not text.strip():
        return schema.empty_table()
    try:
        # Strict, because a lenient reader takes a truncated cell for a complete one.
        rows = list(csv.reader(io.StringIO(text), strict=True))
    except csv.Error as e:
        raise BadAnswer(f"the answer is not a CSV table: {e}", retryable=True) from e
    header = rows[0]
    if not {normalize(h) for h in header} & set(shape.columns_by_wire_name):
        raise _not_a("a CSV table", text)
    if not text.endswith(('"', "\n")):  # the server quotes every cell and ends every row
        raise BadAnswer("the CSV table ends early: the answer was truncated, try again later", retryable=True)
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise BadAnswer(
                f"row {number} of the CSV table has {len(row)} cells, its header {len(header)}", retryable=True
            )
    cells = [{h: c or None for h, c in zip(header, row, strict=True)} for row in rows[1:]]
    table = _from_rows(cells, shape, schema)
    _expect_identity(table, shape)
    return table


def _in_parallel(read: Callable[[bytes], pa.Table], pieces: Iterator[bytes]) -> Iterator[pa.Table]:
    """Yield what `read` makes of each piece, in order; only a few pieces are in memory at a time."""
    first, second = next(pieces, None), next(pieces, None)
    if first is None or second is None:  # as most answers are: threads would cost more than they gain
        yield from map(read, () if first is None else (first,))
        return
    pieces = itertools.chain((first, second), pieces)
    reading: deque[Future[pa.Table]] = deque()
    with ThreadPoolExecutor(READERS, thread_name_prefix="nbia-parse") as pool:
        for piece in pieces:
            reading.append(pool.submit(read, piece))
            if len(reading) > READERS:
                yield reading.popleft().result()
        while reading:
            yield reading.popleft().result()


def _expect_identity(table: pa.Table, shape: Shape) -> None:
    """Refuse rows without their key; only a list of plain values may contain an all-null row (server: ``{}``)."""
    if shape.table is None or len(shape.keys) == 1:
        return
    for name in shape.table.key:
        if table[name].null_count:
            raise BadAnswer(f"{table[name].null_count} of {table.num_rows} rows have no {name}")


def _pieces(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield runs of complete objects, separated by commas, without the array's brackets."""
    buffer = bytearray()
    opened = False
    for chunk in chunks:
        buffer += chunk
        if not opened and (start := buffer.lstrip(_BLANKS)):
            if not start.startswith(b"["):
                raise _not_a("a JSON array", bytes(start[:300]).decode("utf-8", "replace"))
            del buffer[: buffer.index(b"[") + 1]
            opened = True
        if opened and len(buffer) >= PIECE_BYTES:
            cut = _last_boundary(buffer)
            if cut:
                yield bytes(buffer[:cut])
                del buffer[: cut + 1]
    if not opened:
        return
    rest = bytes(buffer).rstrip(_BLANKS)
    if not rest.endswith(b"]"):
        raise BadAnswer("the JSON array ends early: the answer was truncated, try again later", retryable=True)
    if rest := rest[:-1].strip(_BLANKS):
        yield rest


def _not_a(expected: str, text: str) -> BadAnswer:
    start = " ".join(text.split())[:200]
    what = f"the answer is not {expected}, it begins with {start!r}: check base_url"
    if start.startswith("<"):
        what = (
            f"the answer is HTML or XML instead of {expected}: a proxy or a login page may be between you and the "
            f"archive, or base_url may not be that of an NBIA archive; it begins with {start!r}"
        )
    return BadAnswer(what, arguments=("base_url",))


def _last_boundary(buffer: bytearray) -> int:
    """Return the index of the comma after the last complete object but one, or 0."""
    at = len(buffer)
    while (at := buffer.rfind(b'},{"', 0, at)) > 0:
        if _BETWEEN.match(buffer, at):
            return at + 1
    return 0


def _read_fast(piece: bytes, shape: Shape, schema: pa.Schema) -> pa.Table:
    """Read objects that are just as the server writes them; raises ArrowInvalid for all others."""
    if any(key.form not in _FAST_FORMS for key in shape.keys):
        raise pa.ArrowInvalid(f"{shape.name} has forms that need the tolerant reader")
    if not piece.startswith(b"{"):
        raise pa.ArrowInvalid("not an object")  # Arrow's reader crashes at a null in its place
    of_column = {k.name: schema.field(k.column).type for k in shape.keys if k.form is Form.NUMBER and k.column}
    wire = pa.schema([pa.field(k.name, of_column.get(k.name, _FAST_FORMS[k.form])) for k in shape.keys])
    # One object a line; the blank makes the cuts countable. A row without its first key is left to the other reader.
    first = shape.keys[0].name.encode()
    lines = piece.replace(b'},{"' + first + b'":', b'}\n {"' + first + b'":')
    cuts = len(lines) - len(piece)
    raw = pj.read_json(
        pa.BufferReader(lines),
        read_options=pj.ReadOptions(use_threads=False, block_size=len(lines) + 1),
        parse_options=pj.ParseOptions(explicit_schema=wire, unexpected_field_behavior="error"),
    )
    raw.validate(full=True)  # the JSON reader does not check that text is UTF-8
    if raw.num_rows != cuts + 1:
        raise pa.ArrowInvalid("objects without a comma between them")
    columns = {k.column: _cast_fast(raw[k.name], schema.field(k.column).type, k.form) for k in shape.keys if k.column}
    arrays = [columns[f.name] if f.name in columns else pa.nulls(raw.num_rows, f.type) for f in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _cast_fast(values: pa.ChunkedArray, wanted: pa.DataType, form: Form) -> pa.ChunkedArray:
    if form is Form.DATETIME:
        times = values.cast(TIME)
    elif form is Form.US_DAY:
        # Not by strptime, which takes 30 February for 2 March.
        times = pc.replace_substring_regex(values, r"^(\d\d)-(\d\d)-(\d{4})$", r"\3-\1-\2").cast(TIME)
    elif wanted == REAL and not pc.all(pc.is_finite(values), min_count=0).as_py():
        raise pa.ArrowInvalid("JSON has neither NaN nor infinity")
    else:
        return values.cast(wanted)
    if wanted != DAY:
        return times
    days = times.cast(DAY, safe=False)
    if not pc.all(pc.equal(times, days.cast(TIME)), min_count=0).as_py():
        raise pa.ArrowInvalid("a day with a time of day")
    return days


def _read_tolerantly(piece: bytes, shape: Shape, schema: pa.Schema) -> pa.Table:
    try:
        rows = json.loads(b"[" + piece + b"]", parse_float=Decimal, parse_constant=_no_constant)
    except (ValueError, RecursionError) as e:
        raise BadAnswer(f"the answer is not JSON, or was truncated: {e}", retryable=True) from e
    return _from_rows(rows, shape, schema)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")  # Python reads it nonetheless, even where no column wants it


def _from_rows(rows: list[Any], shape: Shape, schema: pa.Schema) -> pa.Table:
    columns_of = shape.columns_by_wire_name
    values: dict[str, list[Any]] = {field.name: [None] * len(rows) for field in schema}
    readers = {field.name: _READERS[field.type] for field in schema}
    known: dict[str, str | None] = {}
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise BadAnswer(f"element {number} of the array is {type(row).__name__}, not an object")
        for key, raw in row.items():
            if key not in known:
                known[key] = columns_of.get(normalize(key))
            column = known[key]
            if column is not None and raw is not None:
                values[column][number] = _read(raw, readers[column], key)
        if row and not any(normalize(key) in columns_of for key in row):
            raise BadAnswer(f"element {number} of the array has none of the keys of {shape.name}: {sorted(row)[:5]}")
    try:
        arrays = [pa.array(values[field.name], field.type) for field in schema]
    except (pa.ArrowInvalid, OverflowError, UnicodeEncodeError) as e:
        raise BadAnswer(f"a value does not fit its column: {e}") from e
    return pa.Table.from_arrays(arrays, schema=schema)


def _read(raw: object, reader: Callable[[object], object], key: str) -> object:
    try:
        return reader(raw)
    except (ValueError, InvalidOperation, OverflowError) as e:
        raise BadAnswer(f"key {key!r} has {str(raw)[:80]!r}: {e}") from e


def read_text(raw: object) -> str:
    """Return a text as it stands; a JSON number is taken by its digits."""
    if isinstance(raw, str):
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
    except InvalidOperation:
        raise ValueError("not a number") from None
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
        return datetime(year, month, day, hour, minute, second, micros)  # noqa: DTZ001
    if m := _US.fullmatch(text):
        return datetime(int(m[3]), int(m[1]), int(m[2]))  # noqa: DTZ001
    if (m := _JAVA.fullmatch(text)) and m[1] in _MONTHS:
        return datetime(int(m[6]), _MONTHS[m[1]], int(m[2]), int(m[3]), int(m[4]), int(m[5]))  # noqa: DTZ001
    raise ValueError("not a date in any form that the archive is known to write")


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


def decoded(body: bytes) -> str:
    """Return a body as text; raises BadAnswer where it is not UTF-8."""
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as e:
        raise BadAnswer(f"the answer is not UTF-8: {e}") from e


# --- are these the rows that were asked for? Each function returns them, or raises BadAnswer where it expects others.


def expect_value(table: pa.Table, column: str, wanted: str | None) -> pa.Table:
    """Expect `wanted` in `column` of every row, in any case, as the server compares; None expects nothing."""
    if wanted is None:
        return table
    sent = pc.unique(table[column]).to_pylist()
    others = [v for v in sent if v is None or v.casefold() != wanted.casefold()]
    if others:
        raise BadAnswer(f"asked for {_label(column)} {wanted!r}, the archive sent rows of {others[:3]}")
    return table


def expect_mostly(table: pa.Table, column: str, wanted: str) -> pa.Table:
    """Expect `wanted` in `column` of at least half of the rows, in any case.

    For studies: one that spans collections names any of them (server), but if most rows are of others, the server
    ignored the filter.
    """
    same = sum(v is not None and v.casefold() == wanted.casefold() for v in table[column].to_pylist())
    if 2 * same < table.num_rows:
        raise BadAnswer(
            f"asked for {_label(column)} {wanted!r}, the archive sent {table.num_rows - same} rows of others and "
            f"{same} of it: try again later"
        )
    return table


def rows_with(table: pa.Table, column: str, wanted: str | None) -> pa.Table:
    """Return the rows with exactly `wanted` in `column`; all of them for None."""
    return table if wanted is None else table.filter(pc.equal(table[column], wanted))


def equals_ignoring_case(table: pa.Table, column: str, wanted: str | None) -> pa.Table:
    """Return the rows with `wanted` in `column`, ignoring case and surrounding blanks; all of them for None.

    Raises:
        ValueError: `wanted` is blank.
    """
    if wanted is None:
        return table
    if not wanted.strip():
        raise ValueError(f"{column} is blank: nothing would match it")
    stored = pc.utf8_lower(pc.utf8_trim_whitespace(table[column]))
    return table.filter(pc.fill_null(pc.equal(stored, pc.utf8_lower(pa.scalar(wanted.strip()))), False))


def expect_released_after(table: pa.Table, day: date, shape: Shape) -> pa.Table:
    """Expect every ``DateReleased`` to be after the midnight that begins `day`.

    A server that reads the day in another order silently starts at another day. Where `shape` has days only, a
    release on `day` itself may be one later that day.
    """
    days_only = any(k.column == "DateReleased" and k.form is Form.US_DAY for k in shape.keys)
    after = pc.greater_equal if days_only else pc.greater
    midnight = pa.scalar(datetime.combine(day, time()), pa.timestamp("us"))
    late = pc.fill_null(after(table["DateReleased"], midnight), False)
    if not pc.all(late, min_count=0).as_py():
        early = table.filter(pc.invert(late)).slice(0, 1).select(["SeriesInstanceUID", "DateReleased"]).to_pylist()[0]
        raise BadAnswer(
            f"asked for releases after {day}, the archive sent series {early['SeriesInstanceUID']} of "
            f"{early['DateReleased']}"
        )
    return table


def non_null(table: pa.Table, column: str) -> list[str]:
    """Return the values of `column`, and expect one in every row."""
    if table[column].null_count:
        raise BadAnswer(f"the archive sent {table[column].null_count} rows without {column}: try again later")
    return list(table[column].to_pylist())


def _label(column: str) -> str:
    return column if column.endswith(("UID", "ID")) else column.lower()
