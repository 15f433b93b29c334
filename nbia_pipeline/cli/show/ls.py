"""``nbia-pipeline ls``: the collections, patients, studies, series and files of a lake."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import click
import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.cli.home import WRONG_CALL, fail, report, say
from nbia_pipeline.cli.options import Options, argument, as_command, existing_lake, settings_of
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.layout import series_path
from nbia_pipeline.mirror.series import has_files
from nbia_pipeline.schema.tables import IMAGE_SERIES, INSTANCES, PATIENTS, SERIES
from nbia_pipeline.text import did_you_mean, first_of, similar_names, size_text, table_text
from nbia_pipeline.verify.tables import stored_collections

_UID = "SeriesInstanceUID"
_OF_SERIES = ("Modality", "SeriesDate", "SeriesDescription")


@as_command()
@argument("names", nargs=-1, metavar="[COLLECTION [PATIENT [STUDY|SERIES]]]", help_="what to list (default: all)")
def command(options: Options) -> int:
    """List the collections of the lake; the patients of one; the series of a patient or a study; the files of a series.

    Patients, series and files are those whose images are in the lake. Paths are relative to the lake.
    """
    names = options.names
    if len(names) > 3:
        raise click.UsageError("give at most a collection, a patient, and a study or a series")
    lake = existing_lake(options, settings_of(options))
    stored = stored_collections(lake)
    if not names:
        return _shown("collections", [_collection(lake, name) for name in stored])
    if names[0] not in stored:
        return _unknown(f"the lake has no collection {names[0]!r}", names[0], stored)
    series = _series(lake, names[0])
    if len(names) == 1:
        return _shown("patients", _patients(series))
    patients = series["PatientID"].unique().to_pylist()
    if names[1] not in patients:
        return _unknown(f"{names[0]} has no images of a patient {names[1]!r}", names[1], patients)
    series = series.filter(pc.equal(series["PatientID"], names[1]))
    if len(names) == 3:
        one = series.filter(pc.equal(series[_UID], names[2]))
        if one.num_rows:
            return _files(lake, one.to_pylist()[0])
        series = series.filter(pc.equal(series["StudyInstanceUID"], names[2]))
        if not series.num_rows:
            return fail(f"patient {names[1]!r} has no images of a study or series {names[2]!r}", WRONG_CALL)
    return _shown("series", list(_described(lake, series)))


def _unknown(sentence: str, name: str, known: Sequence[str]) -> int:
    there = f"there are {first_of(known)}" if known else "there are none"
    return fail(f"{sentence}: {did_you_mean(similar_names(name, known), there)}", WRONG_CALL)


def _shown(what: str, rows: list[dict[str, Any]]) -> int:
    """Print rows as a table, in which sizes have units; their paths are in the document only."""
    report({what: rows})
    if not rows:
        say(f"There are no {what} with images in the lake.")
        return 0
    cells = [[_cell(name, value) for name, value in row.items() if name != "path"] for row in rows]
    header = [name.replace("_", " ").replace("bytes", "size") for name in rows[0] if name != "path"]
    say(*table_text([header, *cells], numbers=what != "series", total=False).split("\n"))
    return 0


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "bytes":
        return size_text(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _collection(lake: Lake, name: str) -> dict[str, Any]:
    series = _series(lake, name)
    return {
        "collection": name,
        "patients_listed": lake.count_rows(PATIENTS, name),
        "series_listed": lake.count_rows(SERIES, name),
        "patients": pc.count_distinct(series["PatientID"]).as_py(),
        "series": series.num_rows,
        "files": lake.count_rows(INSTANCES, name),
        "bytes": pc.sum(series["Bytes"]).as_py() or 0,
    }


def _series(lake: Lake, collection: str) -> pa.Table:
    """Return the receipts of the series whose files are in the lake."""
    columns = [_UID, "StudyInstanceUID", "PatientID", "Collection", "Status", "ImageCount", "Bytes", "FetchedAt"]
    receipts = lake.read_table(IMAGE_SERIES, collection, columns)
    return receipts.filter(has_files(receipts)).sort_by([(name, "ascending") for name in columns[2::-1]])


def _patients(series: pa.Table) -> list[dict[str, Any]]:
    of_each = [("StudyInstanceUID", "count_distinct"), (_UID, "count"), ("ImageCount", "sum"), ("Bytes", "sum")]
    found = series.group_by("PatientID", use_threads=False).aggregate(of_each).sort_by("PatientID")
    keys = ("patient", "studies", "series", "files", "bytes")
    columns = ["PatientID", *(f"{name}_{how}" for name, how in of_each)]
    return [dict(zip(keys, row, strict=True)) for row in zip(*(found[c].to_pylist() for c in columns), strict=True)]


def _described(lake: Lake, series: pa.Table) -> Iterable[dict[str, Any]]:
    """Yield series with what the archive says of them, in the order of their studies."""
    collection = series["Collection"][0].as_py()
    listed = lake.read_rows(SERIES, collection, _UID, series[_UID].to_pylist(), [_UID, *_OF_SERIES])
    about = {row[_UID]: row for row in listed.to_pylist()}
    for row in series.to_pylist():
        known = about.get(row[_UID], {})
        yield {
            "study": row["StudyInstanceUID"],
            "series": row[_UID],
            "modality": known.get("Modality"),
            "date": known.get("SeriesDate"),
            "files": row["ImageCount"],
            "bytes": row["Bytes"],
            "description": known.get("SeriesDescription"),
            "path": series_path(collection, row["PatientID"], row["StudyInstanceUID"], row[_UID]),
        }


def _files(lake: Lake, series: dict[str, Any]) -> int:
    """Print the files of a series, one on a line: their paths are too long for a table."""
    columns = ["SOPInstanceUID", "InstanceNumber", "Size", "MD5", "Path"]
    found = lake.read_rows(INSTANCES, series["Collection"], _UID, [series[_UID]], columns).to_pylist()
    found.sort(key=lambda file: (file["InstanceNumber"] or 0, file["SOPInstanceUID"]))
    keys = ("sop_instance_uid", "instance_number", "bytes", "md5", "path")
    report({"files": [dict(zip(keys, file.values(), strict=True)) for file in found]})
    for file in found:
        say(f"{_cell('', file['InstanceNumber']):>6}  {size_text(file['Size']):>9}  {file['Path']}")
    return 0
