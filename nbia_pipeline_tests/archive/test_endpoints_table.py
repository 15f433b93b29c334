"""The table of docs/endpoints.md says what the client calls, and what the assets use."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import nbia_pipeline
from nbia_pipeline.archive import ArchiveError, NbiaClient
from nbia_pipeline.archive.calls import on_the_wire
from nbia_pipeline.archive.endpoints import DIALECTS
from nbia_pipeline.schema import TABLES
from nbia_pipeline_tests.helpers.archives import TestArchive
from nbia_pipeline_tests.helpers.faults import NO_SUCH_ENDPOINT, answer

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "endpoints.md"
NOT_SERVED = "—"
UID = "1.2.3"
C = "TCGA-DEMO"

CALLS: dict[str, Callable[[NbiaClient], Any]] = {
    "collection_values": lambda c: c.collection_values(),
    "modalities": lambda c: c.modalities(C),
    "body_parts": lambda c: c.body_parts(C),
    "manufacturers": lambda c: c.manufacturers(C),
    "modality_values": lambda c: c.modality_values(),
    "body_part_values": lambda c: c.body_part_values(),
    "manufacturer_values": lambda c: c.manufacturer_values(),
    "collection_counts": lambda c: c.collection_counts(),
    "modality_counts": lambda c: c.modality_counts(C),
    "body_part_counts": lambda c: c.body_part_counts(C),
    "manufacturer_counts": lambda c: c.manufacturer_counts(C),
    "collection_description": lambda c: c.collection_description(C),
    "licenses": lambda c: c.licenses(),
    "collection_or_series_for_doi": lambda c: c.collection_or_series_for_doi("https://doi.org/10.5072/x"),
    "contents_by_name": lambda c: c.contents_by_name("cart"),
    "patients": lambda c: c.patients(C),
    "patients_by_collection_and_modality": lambda c: c.patients_by_collection_and_modality(C, "CT"),
    "new_patients": lambda c: c.new_patients(C, date(2020, 1, 1)),
    "studies": lambda c: c.studies(C),
    "new_studies": lambda c: c.new_studies(C, date(2020, 1, 1)),
    "series": lambda c: c.series(C),
    "series_in_pieces": lambda c: c.series_in_pieces(C, pa.concat_tables),
    "updated_series": lambda c: c.updated_series(date(2020, 1, 1)),
    "series_metadata": lambda c: c.series_metadata([UID]),
    "series_size": lambda c: c.series_size(UID),
    "series_states": lambda c: c.series_states([UID]),
    "denied_series": lambda c: c.denied_series([UID]),
    "sop_instance_uids": lambda c: c.sop_instance_uids(UID),
    "dicom_tags": lambda c: c.dicom_tags(UID),
    "image": lambda c: c.image(UID, b"".join),
    "image_with_md5": lambda c: c.image_with_md5(UID, b"".join),
    "dcm_image": lambda c: c.dcm_image(UID, b"".join),
    "single_image": lambda c: c.single_image(UID, UID, b"".join),
    "md5_of_image": lambda c: c.md5_of_image(UID),
    "md5_hierarchy": lambda c: c.md5_hierarchy(series_uid=UID),
}


@dataclass(frozen=True)
class Line:
    """One row of the table."""

    endpoint: str
    v2: str
    v4: str
    methods: tuple[str, ...]
    assets: tuple[str, ...]

    def call(self, api: str) -> str:
        return self.v2 if api == "v2" else self.v4


def _lines() -> list[Line]:
    cells = [[c.strip() for c in row.strip("|").split("|")] for row in DOCUMENT.read_text().splitlines() if "|" in row]
    return [
        Line(c[0], c[1], c[2], tuple(re.findall(r"`(\w+)`", c[3])), tuple(re.findall(r"\w+", c[4])))
        for c in cells
        if len(c) == 5 and c[0] != "endpoint" and not c[0].startswith("---")
    ]


LINES = _lines()


@pytest.mark.parametrize("api", ["v2", "v4"])
def test_the_table_holds_every_call_of_a_dialect(api: str) -> None:
    documented = [line.call(api) for line in LINES if line.call(api) != NOT_SERVED]
    assert sorted(documented) == sorted(f"{e.method} `{e.path}`" for e in DIALECTS[api].endpoints.values())


def test_what_one_dialect_serves_stands_beside_the_same_of_the_other() -> None:
    v2, v4 = (DIALECTS[api].endpoints for api in ("v2", "v4"))
    pairs = {
        (f"{v2[n].method} `{v2[n].path}`", f"{v4[n].method} `{v4[n].path}`" if n in v4 else NOT_SERVED) for n in v2
    }
    assert {(line.v2, line.v4) for line in LINES} == pairs


def test_every_public_method_is_in_the_table() -> None:
    public = {n for n in dir(NbiaClient) if not n.startswith("_") and callable(getattr(NbiaClient, n))}
    public -= {"close", "optional", "again", "download"}  # the last one makes several calls
    assert {m for line in LINES for m in line.methods} == public == set(CALLS)


@pytest.mark.parametrize("api", ["v2", "v4"])
@pytest.mark.parametrize("line", LINES, ids=lambda line: line.endpoint)
def test_a_method_calls_its_endpoint(archive: TestArchive, api: str, line: Line) -> None:
    if line.call(api) == NOT_SERVED:
        return
    verb, path = line.call(api).replace("`", "").split(" ")
    for method in line.methods:
        archive.faults.reset()
        if line.endpoint == "getSeriesMetaData":
            archive.faults.inject("getSeriesMetadata2", answer(500, NO_SUCH_ENDPOINT))
        with archive.client(api=api) as client:
            try:
                CALLS[method](client)
            except ArchiveError:
                assert line.endpoint not in ("getSeries", "getPatient"), "only unknown series may be refused"
        assert (verb, path) in {(r.method, r.path) for r in archive.faults.seen}


def test_the_assets_named_use_the_methods_named() -> None:
    package = Path(nbia_pipeline.__file__).parent
    folders = ("changes", "mirror", "verify", "defs/assets")
    files = [p for name in folders for p in sorted((package / name).rglob("*.py"))]
    files.append(package / "defs" / "sensors.py")
    used = set(re.findall(r"(?:\b_?client|NbiaClient)\.(\w+)", "".join(p.read_text() for p in files)))
    for line in LINES:
        assert set(line.assets) <= {*TABLES, "images", "nbia_cart", "news", "sensor"}
        assert bool(line.assets) == bool(used.intersection(line.methods)), line


@pytest.mark.parametrize("api", ["v2", "v4"])
@pytest.mark.parametrize("name", ["new_patients", "new_studies", "updated_series"])
@pytest.mark.parametrize("day", [date.min, date(1, 1, 2), date(999, 12, 31), date.max, datetime(2026, 1, 1, 9)])  # noqa: DTZ001 - days only
def test_any_day_of_the_calendar_can_be_asked_for(api: str, name: str, day: date) -> None:
    endpoint = DIALECTS[api].endpoints[name]
    sent = on_the_wire(endpoint, {"since": day})[endpoint.parameters["since"]]
    meant = date.fromordinal(max(1, day.toordinal() - endpoint.days_earlier))
    parts = {int(part) for part in re.split("[-/]", sent)}
    assert parts == {meant.year, meant.month, meant.day}
    assert re.search(r"\b\d{4}\b", sent), "the year has four digits"
