"""Write tables as the server writes them: JSON in the style of Jettison and Jackson, and CSV.

The keys, their order and the form of every value come from the shapes of
:mod:`nbia_pipeline.schema.shapes`. The work is done column by column with Arrow's kernels, in batches, so
that a list of a million rows takes seconds and its memory stays flat.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.schema.shapes import Form, Key, Shape

ROWS_PER_BATCH = 4_000
"""Rows rendered at a time: about 3 MB of JSON for the widest shape."""

JAVA_ZONE = "CDT"
"""Zone name in Java's date text. Server: its own zone, which no answer states."""

_BARE_FORMS = frozenset({Form.NUMBER, Form.BOOLEAN, Form.EPOCH_MS})

# Backslash comes first: the other replacements add backslashes of their own.
_JSON_ESCAPES = {c: json.dumps(c)[1:-1] for c in ("\\", '"', *map(chr, range(32)))} | {"/": "\\/"}
_JSON_SPECIAL = "".join(_JSON_ESCAPES).encode()
# Server: v4 reads these straight from SQL, whose decimals keep their zeros in CSV.
_NATIVE_DECIMALS = frozenset({"SeriesNumber", "LongitudinalTemporalOffsetFromEvent"})


def with_native_decimals(shape: Shape) -> Shape:
    """Return `shape` as v4 writes it in CSV: decimal numbers like ``500.000000``."""
    return replace(
        shape, keys=tuple(replace(k, form=Form.DECIMAL_TEXT) if k.name in _NATIVE_DECIMALS else k for k in shape.keys)
    )


def spelling(key: Key, guide: bool = False) -> str:
    """Return the name of `key`: the server's, or the guide's where `guide` is true and it differs."""
    return key.guide if guide and key.guide is not None else key.name


def render_json(table: pa.Table, shape: Shape, guide: bool = False) -> Iterator[bytes]:
    r"""Yield `table` as Jettison 1.1 writes it.

    Server: keys in column order, null values omit the key, ``/`` written as ``\/``, non-ASCII as raw UTF-8,
    no white space, ``{}`` for a row of nulls.

    Args:
        table: columns named as the shape's columns or sources; a missing one counts as null. A column that
            is text already is written as it is, whatever the form.
        shape: keys in order.
        guide: use the guide's spellings.

    Yields:
        Pieces of the array, a large one per batch.
    """
    opening = b"["
    for batch in table.to_batches(max_chunksize=ROWS_PER_BATCH):
        if batch.num_rows:
            yield opening
            yield _data_of(_json_rows(batch, shape, guide), skip=len(","))
            opening = b","
    yield b"]" if opening == b"," else b"[]"


def render_csv(table: pa.Table, shape: Shape, guide: bool = False) -> Iterator[bytes]:
    """Yield `table` as the server's CSV.

    Server: several columns: every cell in double quotes, inner quotes doubled, LF, null as ``""``, but for a null in
    the first column, for which it writes the end of a cell and the beginning of the next. One column: header and values
    unquoted, a null prints two newlines.

    Args are those of :func:`render_json`.
    """
    names = [spelling(key, guide) for key in shape.keys]
    if len(names) == 1:
        yield f"{names[0]}\n".encode()
        for batch in table.to_batches(max_chunksize=ROWS_PER_BATCH):
            values = pc.fill_null(_texts(batch, shape.keys[0]), "\n")
            yield _data_of(pc.binary_join_element_wise(values, "\n", ""))
        return
    yield (",".join('"' + name.replace('"', '""') + '"' for name in names) + "\n").encode()
    for batch in table.to_batches(max_chunksize=ROWS_PER_BATCH):
        texts = [_texts(batch, key) for key in shape.keys]
        cells = [pc.fill_null(pc.replace_substring(text, '"', '""'), "") for text in texts]
        opening = pc.if_else(pc.is_null(texts[0]), '","', '"')
        rows = pc.binary_join_element_wise(*cells, '","')
        yield _data_of(pc.binary_join_element_wise(opening, rows, '"\n', ""))


def render_jackson(table: pa.Table, shape: Shape, guide: bool = False, nulls: bool = True) -> bytes:
    """Return a small `table` as Jackson writes it: ``[]`` when empty; without `nulls` their keys are left out."""
    rows = [
        {
            spelling(key, guide): text if text is None or key.form not in _BARE_FORMS else json.loads(text)
            for key, text in zip(shape.keys, cells, strict=True)
            if nulls or text is not None
        }
        for batch in table.to_batches()
        for cells in zip(*(_texts(batch, key).to_pylist() for key in shape.keys), strict=True)
    ]
    return json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode()


def _json_rows(batch: pa.RecordBatch, shape: Shape, guide: bool) -> pa.Array:
    """Return one string per row: a comma, then the object."""
    members = [m for m in (_member(batch, key, guide) for key in shape.keys) if m is not None]
    if not members:
        return pa.array([",{}"] * batch.num_rows)
    if all(member.null_count for member in members):
        # The kernel loses a row that is null in every column: an empty column keeps it, and its comma goes.
        joined = pc.binary_join_element_wise("", *members, ",", null_handling="skip")
        joined = pc.utf8_slice_codeunits(joined, len(","))
    else:
        joined = pc.binary_join_element_wise(*members, ",", null_handling="skip")
    return pc.binary_join_element_wise(",{", joined, "}", "")


def _member(batch: pa.RecordBatch, key: Key, guide: bool) -> pa.Array | None:
    """Return ``"Key":value`` for every row, null where the value is null; None if all are null."""
    texts = _texts(batch, key)
    if texts.null_count == len(texts):
        return None
    name = json.dumps(spelling(key, guide), ensure_ascii=False)
    if key.form in _BARE_FORMS:
        return pc.binary_join_element_wise(f"{name}:", texts, "")
    return pc.binary_join_element_wise(f'{name}:"', _escaped(texts), '"', "")


def _escaped(texts: pa.Array) -> pa.Array:
    """Escape strings for JSON; only the characters that occur cost a pass."""
    data = _data_of(texts)
    if len(data.translate(None, _JSON_SPECIAL)) == len(data):
        return texts
    distinct = texts.dictionary_encode()
    escaped = distinct.dictionary
    for old, new in _JSON_ESCAPES.items():
        if old.encode() in data:
            escaped = pc.replace_substring(escaped, old, new)
    return escaped.take(distinct.indices)


def _data_of(texts: pa.Array, skip: int = 0) -> bytes:
    """Return the characters of a string array, end to end, without the first `skip` bytes."""
    _, offsets, data = texts.buffers()
    if data is None or not len(texts):
        return b""
    bounds = np.frombuffer(offsets, dtype=np.int32)
    start, stop = int(bounds[texts.offset]) + skip, int(bounds[texts.offset + len(texts)])
    return bytes(data.slice(start, stop - start).to_pybytes())


def _texts(batch: pa.RecordBatch, key: Key) -> pa.Array:
    """Return the text of every value of `key`, neither quoted nor escaped; null stays null."""
    position = batch.schema.get_field_index(key.source or key.column or key.name)
    values = batch.column(position) if position >= 0 else pa.nulls(batch.num_rows)
    if pa.types.is_null(values.type):
        return values.cast(pa.string())
    if pa.types.is_string(values.type):
        return values
    if key.form not in _WRITERS:
        return _plain(values)
    distinct = values.dictionary_encode()
    return _WRITERS[key.form](distinct.dictionary).take(distinct.indices)


def _plain(values: pa.Array) -> pa.Array:
    if pa.types.is_floating(values.type):
        # The kernel writes 59.0 as 59, as the server does; NaN and infinity have no JSON.
        values = pc.if_else(pc.is_finite(values), values, pa.scalar(None, values.type))
    return values.cast(pa.string())


def _decimal(values: pa.Array) -> pa.Array:
    # A whole number beyond 2**53 must not become a float.
    texts = [f"{x}.000000" if isinstance(x, int) else f"{x:.6f}" for x in values.to_pylist()]
    return pa.array(texts, pa.string())


def _datetime(values: pa.Array) -> pa.Array:
    """Write ``2014-11-06 00:00:00.0``: one fraction digit at least, no zeros beyond it."""
    micros = values.cast(pa.timestamp("us")).cast(pa.string())
    return pc.replace_substring_regex(micros, r"(\.\d+?)0*$", r"\1")


def _iso_day(values: pa.Array) -> pa.Array:
    return values.cast(pa.date32(), safe=False).cast(pa.string())


def _us_day(values: pa.Array) -> pa.Array:
    days = _iso_day(values)
    return pc.binary_join_element_wise(pc.utf8_slice_codeunits(days, 5), pc.utf8_slice_codeunits(days, 0, 4), "-")


def _java_text(moment: date | datetime) -> str:
    """Write Java's ``Date.toString``, whose names are English whatever the locale, as those of ``ctime`` are."""
    weekday, month, _, clock, year = moment.ctime().split()
    return f"{weekday} {month} {moment.day:02d} {clock} {JAVA_ZONE} {year}"


def _epoch_ms(values: pa.Array) -> pa.Array:
    if pa.types.is_timestamp(values.type):
        values = values.cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
    return values.cast(pa.string())


_WRITERS: dict[Form, Callable[[pa.Array], pa.Array]] = {
    Form.DECIMAL_TEXT: _decimal,
    Form.DATETIME: _datetime,
    Form.ISO_DAY: _iso_day,
    Form.US_DAY: _us_day,
    Form.JAVA: lambda values: pa.array(map(_java_text, values.to_pylist()), pa.string()),
    Form.EPOCH_MS: _epoch_ms,
}
"""How the values of a form are written that Arrow writes otherwise."""
