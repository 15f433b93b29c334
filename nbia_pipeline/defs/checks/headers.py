"""The checks of headers and references: they are of the files in the lake, agree with the archive, and resolve."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.defs.checks.check import Check, Finding, Report, Subject, build_check_step
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.headers.graph.resolve import problems
from nbia_pipeline.headers.shards import plan_headers, shard_of
from nbia_pipeline.lake import Lake
from nbia_pipeline.schema import Table
from nbia_pipeline.schema.arrow import places_in, repeats
from nbia_pipeline.schema.headers import INSTANCE_HEADERS, SERIES_REFERENCES
from nbia_pipeline.schema.tables import INSTANCES, SERIES
from nbia_pipeline.settings import Settings

RUN, READ_AGAIN = "nbia-pipeline run", "materialize headers with the config full: true"
_UID, _SOP = "SeriesInstanceUID", "SOPInstanceUID"
LISTED = ("PatientID", "StudyInstanceUID", "Modality")
CTP = "CTPCollection"


def build_checks(naming: Naming, settings: Settings) -> list[dg.AssetChecksDefinition]:
    """Return the checks of headers and references of one archive."""
    of_headers = (
        Check(
            "headers_complete", "Every file in the lake has one row of its header, and no other row is there.", complete
        ),
        Check(
            "headers_agree",
            "The files state the patient, study, modality and collection that the archive lists.",
            agree,
            severity=dg.AssetCheckSeverity.WARN,
        ),
    )
    of_references = Check(
        "references_resolve",
        "The images that annotations refer to are in the lake or the archive, in the series that they name.",
        resolve,
        severity=dg.AssetCheckSeverity.WARN,
    )
    return [
        build_check_step(naming, settings, INSTANCE_HEADERS, of_headers, asset="headers"),
        build_check_step(naming, settings, SERIES_REFERENCES, [of_references], asset="references"),
    ]


# --- complete


def complete(subject: Subject) -> Report:
    """Compare the rows with the files; what the next run reads, or takes out, is a warning."""
    lake, collection = subject.lake, subject.collection
    if not subject.settings.reads_headers_of(collection):
        return Report([], summary="The headers of the collection are not read")
    files, rows = (lake.read_table(table, collection, [_SOP])[_SOP] for table in (INSTANCES, INSTANCE_HEADERS))
    missing, others = pc.is_null(places_in(files, rows)), pc.is_null(places_in(rows, files))
    found = [
        *_by_series(lake, INSTANCES, collection, missing, "{} files of series {} have no row"),
        *_by_series(lake, INSTANCE_HEADERS, collection, others, "{} rows of series {} are of no file in the lake"),
    ]
    if found:
        stale = {(shard.part, shard.shards) for shard in plan_headers(lake, collection)}
        shards = max((count for _, count in stale), default=1)
        found = [replace(f, warning=(shard_of(f.series or "", shards), shards) in stale) for f in found]
    if repeats(rows):
        found.append(Finding(f"{len(rows) - len(pc.unique(rows)):,} rows are of files that have one already"))
    summary = f"{len(files) - (pc.sum(missing).as_py() or 0):,} of {len(files):,} files have a row"
    return Report(sorted(found, key=lambda f: f.warning), {"files": len(files)}, _remedy, summary)


def _remedy(first: list[Finding]) -> str:
    return RUN if all(finding.warning for finding in first) else READ_AGAIN


def _by_series(lake: Lake, table: Table, collection: str, mask: pa.ChunkedArray, sentence: str) -> Iterator[Finding]:
    """Yield a finding for each series of which rows of a table are marked."""
    if not pc.any(mask).as_py():
        return
    series = lake.read_table(table, collection, [_UID])[_UID].filter(mask)
    for one in pc.value_counts(series).to_pylist():
        yield Finding(sentence.format(f"{one['counts']:,}", one["values"]), one["values"])


# --- agree


def agree(subject: Subject) -> Report:
    """Compare what the files state with what the archive lists of their series."""
    lake, collection = subject.lake, subject.collection
    listed = lake.read_table(SERIES, collection, [_UID, *LISTED]).to_pylist()
    expected = {row[_UID]: {**row, CTP: collection} for row in listed}
    return Report(_disagreements(_stated(lake, collection), expected))


def _stated(lake: Lake, collection: str) -> list[dict[str, Any]]:
    """Return how many files of each series state what, as far as it is known."""
    columns = [_UID, *LISTED, CTP]
    found = [INSTANCE_HEADERS.schema.empty_table().select(columns).group_by(columns).aggregate([([], "count_all")])]
    for piece in lake.read_pieces(INSTANCE_HEADERS, collection, columns):
        found.append(piece.group_by(columns, use_threads=False).aggregate([([], "count_all")]))
    counted = pa.concat_tables(found).group_by(columns, use_threads=False).aggregate([("count_all", "sum")])
    stated: list[dict[str, Any]] = counted.rename_columns([*columns, "files"]).to_pylist()
    return stated


def _disagreements(stated: Iterable[Mapping[str, Any]], expected: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    for row in stated:
        known = expected.get(row[_UID], {})
        for name in (*LISTED, CTP):
            ours, theirs = row[name], known.get(name)
            if ours is not None and theirs is not None and ours.strip() != theirs.strip():
                files = f"{row['files']:,} files of series {row[_UID]}"
                yield Finding(f"{files} state {name} {ours!r}, and the archive lists {theirs!r}", row[_UID])


# --- references


def resolve(subject: Subject) -> Report:
    """Look for annotations whose images are unknown, or elsewhere than they state."""
    return Report(Finding(what, uid) for uid, what in problems(subject.lake, subject.collection))
