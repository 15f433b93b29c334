"""From the bytes of an answer to an Arrow table of fixed schema.

Lists arrive as one JSON array, of up to hundreds of megabytes. It is read in pieces: Arrow's JSON reader
takes each piece if it is exactly as the server writes it, and a tolerant reader takes the others (numbers
as text, the guide's spellings, any of the date forms). Both yield the same values.

A value that does not fit its column is null, a row without its key is left out, and both are reported: one odd value
must not cost the others. What is not the thing that was asked for is an error.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from functools import partial, reduce
from operator import itemgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from nbia_pipeline import stopping
from nbia_pipeline.archive.bounds import not_a, pieces_of_array
from nbia_pipeline.archive.conformance import Nonconformity, as_sent, report
from nbia_pipeline.archive.errors import BadAnswer
from nbia_pipeline.archive.values import NoNumber, read_values
from nbia_pipeline.schema.shapes import Form, Shape, normalize
from nbia_pipeline.schema.tables import COUNT, DAY, FLAG, REAL, TEXT, TIME
from nbia_pipeline.text import size_text

MOST_VALUES = 1 << 20
"""What a piece, or a CSV table, may have of values: each is an object here, several times as large as it is there."""
MOST_KEYS = 1000
"""Different keys of the rows of an answer; the archive's have some thirty."""
MOST_FOUND = 20_000
"""What does not fit is reported so often for one answer, and counted beyond."""
TABLE_BYTES = 2 << 30
# Threads for the pieces of one answer, while another receives them. Arrow's reader lets them run side by side.
READERS = 2

# Python refuses to read integers of thousands of digits.
LONGEST_INTEGER = 40
_UNKNOWN = ""
_MAY_BE_EMPTY = "PatientID"
# Server: for a null in the first column it writes the end of a cell that it has not begun.
_NULL_FIRST = re.compile('^","(?=",")', re.MULTILINE)

csv.field_size_limit(2**31 - 1)  # of the process: descriptions may be longer than the 128 KB that Python allows
_FAST_FORMS = {
    Form.TEXT: TEXT,
    Form.NUMBER: COUNT,
    Form.BOOLEAN: FLAG,
    Form.FLAG_TEXT: TEXT,
    Form.DATETIME: TEXT,
    Form.US_DAY: TEXT,
}


# Python runs one of them at a time anyway, and takes much memory for each.
_ONE_AT_A_TIME = threading.Lock()


@dataclass
class _Piece:
    """Rows, what in them does not fit, and in how many of them a key stands that no column takes, with an example.

    What does not fit is listed up to a bound; `more` is the number of the others.
    """

    rows: pa.Table
    found: list[Nonconformity] = field(default_factory=list)
    more: int = 0
    unknown: dict[str, tuple[int, str]] = field(default_factory=dict)


def read_json(chunks: Iterable[bytes], shape: Shape) -> pa.Table:
    """Return the rows of a JSON array as one table; see :func:`pieces_of_json`."""
    return pa.concat_tables([shape.schema.empty_table(), *pieces_of_json(chunks, shape)])


def pieces_of_json(chunks: Iterable[bytes], shape: Shape) -> Iterator[pa.Table]:
    """Read a JSON array of flat objects, as the list endpoints send it, and report what does not fit.

    Its rows count once all were taken: what is wrong with the whole answer is found at its end.

    Args:
        chunks: the body in pieces of any size; an empty body means no rows (server: never ``[]``).
        shape: the keys that the endpoint sends.

    Yields:
        Tables of the shape's schema; omitted keys and values that do not fit are null.

    Raises:
        BadAnswer: the body is not such an array, ends early, none of its rows has its key, or it has more of something
            than fits into memory.

    Server: where it fails at a row, it closes the array there and answers 200. That looks like a
    shorter list; only what was known of the list before can show it.
    """

    def read(piece: bytes) -> _Piece:
        try:
            return _Piece(_read_fast(piece, shape))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            with _ONE_AT_A_TIME:
                return _read_tolerantly(piece, shape)

    yield from _checked(_in_parallel(read, pieces_of_array(chunks)), shape)


def read_csv(body: bytes, shape: Shape) -> pa.Table:
    """Read the quoted CSV that the metadata endpoints send, as :func:`read_json`; an empty cell is null.

    Raises:
        BadAnswer: the header has none of the shape's keys, no row has as many cells, or a cell or the last row does not
            end.
    """
    if sum(map(body.count, (b",", b"\n", b"\r"))) > MOST_VALUES:
        raise BadAnswer(f"the CSV table has more than {MOST_VALUES} cells, far more than was asked for")
    text = body.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
    if not text or text.isspace():
        return shape.schema.empty_table()
    try:
        return _only([_csv_rows(text, shape)], shape)
    except BadAnswer:
        repaired = _NULL_FIRST.sub('"', text)
        if repaired == text:
            raise
        return _only([_csv_rows(repaired, shape)], shape)


def _csv_rows(text: str, shape: Shape) -> _Piece:
    try:
        # Strict, because a lenient reader takes a truncated cell for a complete one.
        header, *rows = filter(None, csv.reader(io.StringIO(text), strict=True))
    except csv.Error as e:
        raise BadAnswer(f"the answer is not a CSV table: {e}", retryable=True) from e
    if not {normalize(h) for h in header} & set(shape.columns_by_wire_name):
        raise not_a("a CSV table", text)
    whole = [row for row in rows if len(row) == len(header)]
    odd = [row for row in rows if len(row) != len(header) and any(map(str.strip, row))]
    # The server quotes every cell and ends every row.
    if not text.endswith("\n") and (not text.endswith('"') or len([header, *rows][-1]) != len(header)):
        raise BadAnswer("the CSV table ends early: the answer was truncated, try again later", retryable=True)
    if odd and not whole:
        what = f"no row of the CSV table has {len(header)} cells, as its header has: the first has {len(odd[0])}"
        raise BadAnswer(what, retryable=True)
    # A name that is there twice differs by a blank, which no key has.
    names = [name + " " * header[:number].count(name) for number, name in enumerate(header)]
    piece = _from_rows([{h: c or None for h, c in zip(names, row, strict=True)} for row in whole], shape)
    why = f"a row was left out that does not have {len(header)} cells, as the header has"
    piece.found += [_left_out(shape, row, why) for row in odd]
    return piece


def _only(pieces: list[_Piece], shape: Shape) -> pa.Table:
    return pa.concat_tables(_checked(pieces, shape))


def _checked(pieces: Iterable[_Piece], shape: Shape) -> Iterator[pa.Table]:
    """Yield the rows of the pieces of one answer that count, and report at the end what does not fit."""
    kept = size = count = 0
    filled: set[str] = set()
    found: list[Nonconformity] = []
    without: list[Nonconformity] = []
    more = 0
    unknown: dict[str, tuple[int, str]] = {}
    for piece in pieces:
        whole, left_out, others = _with_identity(piece.rows, shape)
        kept, size, count = kept + whole.num_rows, size + whole.nbytes, count + piece.rows.num_rows
        filled.update(name for name in shape.schema.names if piece.rows[name].null_count < piece.rows.num_rows)
        more += piece.more + others
        for all_, new in ((found, piece.found), (without, left_out)):
            more += max(0, len(all_) + len(new) - MOST_FOUND)
            all_ += new[: MOST_FOUND - len(all_)]
        for key, (rows, example) in piece.unknown.items():
            before, first = unknown.get(key, (0, example))
            unknown[key] = before + rows, first
        if size > TABLE_BYTES or len(unknown) > MOST_KEYS:
            what = f"{size_text(size)} of rows, {len(unknown)} unknown keys"
            raise BadAnswer(f"the list is far larger than any archive's: {what} so far. Check base_url")
        yield whole
    found += _unknown_keys(unknown, count, filled, shape) + without
    if more:
        found.append(Nonconformity(shape.fills, None, "", None, f"{more} more values or rows do not fit either"))
    report(found)
    if count and not kept:
        instead = f", they have {', '.join(sorted(unknown))} instead" if unknown else ""
        key = " and ".join(shape.table.key if shape.table else ())
        raise BadAnswer(f"none of the {count} rows of {shape.fills} has its {key}{instead}")


def _unknown_keys(
    unknown: dict[str, tuple[int, str]], count: int, filled: set[str], shape: Shape
) -> list[Nonconformity]:
    """Return the keys that no column takes, with the known ones that no row has: one may be the other's new name."""
    absent = [k.name for k in shape.keys if k.column and k.column not in filled]
    lacking = f"; no row has {', '.join(absent)}" if absent else ""
    return [
        Nonconformity(shape.fills, None, key, example, f"no column takes this key of {n} of {count} rows{lacking}")
        for key, (n, example) in unknown.items()
    ]


def _with_identity(table: pa.Table, shape: Shape) -> tuple[pa.Table, list[Nonconformity], int]:
    """Return the rows that have their key, and what is reported of the others, and of how many nothing is.

    An empty text is no UID and no collection, though a PatientID can be empty (DICOM: type 2). A list of plain values
    may contain an all-null row (server: ``{}``).
    """
    if shape.table is None or len(shape.keys) == 1 or not table.num_rows:
        return table, [], 0
    has_key = reduce(pc.and_, (_is_key(table[name], name) for name in shape.table.key))
    left_out = table.filter(pc.invert(has_key))
    if not left_out.num_rows:
        return table, [], 0
    found = []
    for row in left_out.slice(0, MOST_FOUND).to_pylist():
        lacking = next(
            name for name in shape.table.key if row[name] is None or (not row[name] and name != _MAY_BE_EMPTY)
        )
        rest = {name: value for name, value in row.items() if value is not None}
        sent = as_sent(json.dumps(rest, default=str, ensure_ascii=False))
        why = f"a row without its {lacking} was left out"
        found.append(Nonconformity(shape.table.name, None, lacking, sent, why))
    return table.filter(has_key), found, left_out.num_rows - len(found)


def _is_key(values: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    return pc.is_valid(values) if name == _MAY_BE_EMPTY else pc.fill_null(pc.not_equal(values, ""), False)


def _in_parallel(read: Callable[[bytes], _Piece], pieces: Iterator[bytes]) -> Iterator[_Piece]:
    """Yield what `read` makes of each piece, in order; only a few pieces are in memory at a time."""
    first, second = next(pieces, None), next(pieces, None)
    if first is None or second is None:  # as most answers are: threads would cost more than they gain
        yield from map(read, () if first is None else (first,))
        return
    calls = (partial(read, piece) for piece in itertools.chain((first, second), pieces))
    with stopping.threads(READERS, "nbia-parse") as pool:
        yield from stopping.in_order(pool, calls, READERS + 1)


def _read_fast(piece: bytes, shape: Shape) -> pa.Table:
    """Read objects that are just as the server writes them; raises ArrowInvalid for all others."""
    schema = shape.schema
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
        # Each day once: there are few. Not by strptime, which takes 30 February for 2 March.
        days = values.combine_chunks().dictionary_encode()
        distinct = pc.replace_substring_regex(days.dictionary, r"^(\d\d)-(\d\d)-(\d{4})$", r"\3-\1-\2").cast(TIME)
        times = pa.chunked_array([distinct.take(days.indices)])
    elif wanted == REAL and not pc.all(pc.is_finite(values), min_count=0).as_py():
        raise pa.ArrowInvalid("JSON has neither NaN nor infinity")
    else:
        return values.cast(wanted)
    if wanted != DAY:
        return times
    dates = times.cast(DAY, safe=False)
    if not pc.all(pc.equal(times, dates.cast(TIME)), min_count=0).as_py():
        raise pa.ArrowInvalid("a day with a time of day")
    return dates


def _read_tolerantly(piece: bytes, shape: Shape) -> _Piece:
    if sum(map(piece.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise BadAnswer(f"the list has more than {MOST_VALUES} values in {size_text(len(piece))}: check base_url")
    try:
        # Not strict: a line break in a text, as it stands, is no reason to refuse the others.
        read = json.JSONDecoder(parse_float=_number, parse_int=_integer, parse_constant=NoNumber, strict=False).decode
        rows = read("[" + piece.decode("utf-8", "surrogateescape") + "]")
    except (ValueError, RecursionError) as e:
        raise BadAnswer(f"the answer is not JSON, or was truncated: {e}", retryable=True) from e
    objects = [row for row in rows if isinstance(row, dict)]
    if rows and not objects:
        raise BadAnswer(f"the elements of the array are not objects; the first is {as_sent(rows[0])[:80]!r}")
    read_piece = _from_rows(objects, shape)
    why = "an element of the array that is not an object was left out"
    read_piece.found += [_left_out(shape, row, why) for row in rows if not isinstance(row, dict)]
    return read_piece


def _left_out(shape: Shape, row: object, why: str) -> Nonconformity:
    key = shape.table.key[-1] if shape.table else shape.schema.names[0]
    return Nonconformity(shape.fills, None, key, as_sent(row), why)


def _integer(digits: str) -> int | Decimal:
    return int(digits) if len(digits) < LONGEST_INTEGER else Decimal(digits)


def _number(digits: str) -> Decimal | NoNumber:
    try:
        return Decimal(digits)
    except InvalidOperation:  # its exponent has dozens of digits
        return NoNumber(digits)


def _from_rows(rows: list[dict[str, Any]], shape: Shape) -> _Piece:
    """Read rows column by column: equal values are read once, so that one that is odd in every row costs little."""
    taken: dict[str, list[str]] = {}
    unknown: dict[str, tuple[int, str]] = {}
    spellings = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
    if len(spellings) > MOST_KEYS:
        raise BadAnswer(f"the rows have more than {MOST_KEYS} different keys: check base_url")
    for spelling in spellings:
        column = shape.columns_by_wire_name.get(normalize(spelling), _UNKNOWN)
        if column == _UNKNOWN:
            sent = [row[spelling] for row in rows if row.get(spelling) is not None]
            if sent:
                unknown[as_sent(spelling)] = (len(sent), as_sent(sent[0]))  # a key that is not UTF-8 can be no text
        elif column is not None:
            taken.setdefault(column, []).append(spelling)
    if unknown and not any(normalize(spelling) in shape.columns_by_wire_name for spelling in spellings):
        raise BadAnswer(f"the rows have none of the keys of {shape.name}: {sorted(unknown)[:5]}")
    arrays, odd = [], []
    for field_ in shape.schema:
        raw, others = _values_of(rows, taken.get(field_.name, []))
        values, misfits = read_values(raw, field_.type)
        arrays.append(values)
        odd += [(n, field_.name, raw[n], f"{why}; the cell is null") for n, why in misfits.items()]
        odd += [(n, field_.name, value, why) for n, value, why in others]
    table = pa.Table.from_arrays(arrays, schema=shape.schema)
    names = shape.table.key if shape.table else ()
    more = max(0, len(odd) - MOST_FOUND)
    odd = sorted(odd, key=itemgetter(0))[:MOST_FOUND]
    keys = [table[name].to_pylist() for name in names] if odd else []
    found = [
        Nonconformity(shape.fills, " ".join(str(k[n]) for k in keys) or None, column, as_sent(sent), why)
        for n, column, sent, why in odd
    ]
    return _Piece(table, found, more, unknown)


def _values_of(rows: list[dict[str, Any]], spellings: list[str]) -> tuple[list[Any], list[tuple[int, Any, str]]]:
    """Return the value of a column in each row, and those that stand in a row under another spelling, and differ."""
    if not spellings:
        return [None] * len(rows), []
    first, *others = spellings
    values = [row.get(first) for row in rows]
    differ = []
    for spelling in others:
        for number, row in enumerate(rows):
            value = row.get(spelling)
            if values[number] is None:
                values[number] = value
            elif value not in (None, values[number]):
                why = f"the row has another value under the key {first!r}, which was kept"
                differ.append((number, value, why))
    return values, differ


def decoded(body: bytes) -> str:
    """Return a body as text; raises BadAnswer where it is not UTF-8."""
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as e:
        raise BadAnswer(f"the answer is not UTF-8: {e}") from e
