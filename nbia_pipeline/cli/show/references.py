"""``nbia-pipeline references``: what a series refers to, and what refers to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.cli.home import WRONG_CALL, fail, report, say
from nbia_pipeline.cli.options import Options, argument, as_command, existing_lake, settings_of
from nbia_pipeline.headers.graph.known import KnownSeries, known_series
from nbia_pipeline.lake import Lake
from nbia_pipeline.schema.headers import SERIES_REFERENCES
from nbia_pipeline.schema.tables import INSTANCES
from nbia_pipeline.text import table_text

_UID, _TARGET = "SeriesInstanceUID", "ReferencedSeriesInstanceUID"
_COUNTS = {"instances": "ReferencedInstances", "of": "OfInstances", "missing": "Missing"}


@as_command()
@argument("uid", metavar="UID", help_="SeriesInstanceUID, or SOPInstanceUID of an instance in the lake")
def command(options: Options) -> int:
    """Show what a series refers to, and what refers to it, by the headers of the files in the lake.

    Of an instance, the series that it is in is shown. Instances are those that are referred to, of as many as the
    series has; missing are those that are not in the lake.
    """
    lake = existing_lake(options, settings_of(options))
    uid, known = _series(lake, options.uid)
    to, by = (_rows(lake, uid, own=own) for own in (True, False))
    if known is None and not by:
        return fail(
            f"the lake {lake.uri} knows of no series or instance {options.uid!r}",
            WRONG_CALL,
        )
    about = (
        {"collection": known.collection, "modality": known.modality}
        if known
        else {"collection": None, "modality": None}
    )
    state = "unknown" if known is None else "held" if known.held else "listed"
    report({"series": uid, **about, "state": state, "refers_to": to, "referred_to_by": by})
    of = f"{known.modality or 'a series'} of {known.collection}" if known else "of no collection in the lake"
    say(f"Series {uid}: {of}, {state}")
    if known and not known.held:
        say("Its files are not in the lake, so that what it refers to is not known.")
    elif known and not lake.has_table(SERIES_REFERENCES, known.collection):
        say(f"The headers of {known.collection} have not been read yet, so that what it refers to is not known.")
    if not to and not by:
        say("It refers to nothing that is known, and nothing refers to it.")
    for title, found in (("It refers to", to), ("It is referred to by", by)):
        if found:
            say("", f"{title}:", *_table(found))
    return 0


def _series(lake: Lake, uid: str) -> tuple[str, KnownSeries | None]:
    """Return the series of that UID, or that has an instance of that UID, and what the lake knows of it."""
    known = known_series(lake, [uid])
    if not known:
        for name in lake.collections_of(INSTANCES):
            found = lake.read_rows(INSTANCES, name, "SOPInstanceUID", [uid], [_UID])
            if found.num_rows:
                uid = found[_UID][0].as_py()
                known = known_series(lake, [uid], name)
    return uid, known.get(uid)


def _rows(lake: Lake, uid: str, *, own: bool) -> list[dict[str, Any]]:
    """Return the references of a series, or those to it."""
    given, other = (_UID, _TARGET) if own else (_TARGET, _UID)
    collection, modality = (f"Referenced{name}" if own else name for name in ("Collection", "Modality"))
    columns = {"role": "Role", "series": other, "modality": modality, "collection": collection}
    columns |= {**_COUNTS, "resolution": "Resolution", "stated": "Stated"}
    tables = [SERIES_REFERENCES.schema.empty_table()]
    for name in lake.collections_of(SERIES_REFERENCES):
        rows = lake.read_table(SERIES_REFERENCES, name)
        tables.append(rows.filter(pc.equal(rows[given], uid)))
    found = pa.concat_tables(tables)
    return [{key: row[column] for key, column in columns.items()} for row in found.to_pylist()]


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    header = [name for name in rows[0] if name != "stated"]
    cells = [[_cell(row[name]) for name in header] for row in rows]
    return table_text([header, *cells], numbers=False, total=False).split("\n")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else str(value)
