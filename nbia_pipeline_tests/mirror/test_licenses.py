"""The text of every licence lies beside the images and in a table, and costs kilobytes."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from urllib.parse import quote

import duckdb
import pyarrow as pa
import pytest

from nbia_pipeline.archive import BadAnswer, LoginRefused, NbiaClient
from nbia_pipeline.embedded.pytest_plugin import NbiaArchive
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.layout import encode, license_path
from nbia_pipeline.mirror.licenses import MOST_BYTES, keep_licenses, read_license
from nbia_pipeline.schema.tables import LICENSES, SERIES
from nbia_pipeline_tests.helpers import zips
from nbia_pipeline_tests.helpers.archives import FAST, TestArchive
from nbia_pipeline_tests.helpers.faults import answer
from nbia_pipeline_tests.helpers.places import WHERE, Place, lake_in

COLLECTION = "HeadNeckMix"
BY = "Creative Commons Attribution 4.0 International License"
NC = "Creative Commons Attribution-NonCommercial 4.0 International License"


@pytest.fixture(params=WHERE)
def lake(request: pytest.FixtureRequest, place: Place) -> Lake:
    return lake_in(place, request.param)


@pytest.fixture
def series(client: NbiaClient) -> pa.Table:
    return client.series(COLLECTION)


def changed(series: pa.Table, column: str, values: list[str | None]) -> pa.Table:
    rows = series.to_pylist()
    for row, value in zip(rows, itertools.cycle(values), strict=False):
        row[column] = value
    return pa.Table.from_pylist(rows, schema=SERIES.schema)


def texts(lake: Lake, table: pa.Table) -> list[str]:
    read = []
    for path in table["Path"].to_pylist():
        with lake.open(path) as file:
            read.append(file.read().decode())
    return read


def smallest(series: pa.Table) -> list[str]:
    return list(series.sort_by([("FileSize", "ascending")])["SeriesInstanceUID"].to_pylist())


def test_a_text_is_asked_once_and_lies_beside_the_images_and_in_the_table(
    archive: TestArchive, client: NbiaClient, lake: Lake, series: pa.Table
) -> None:
    table = keep_licenses(client, lake, COLLECTION, series)
    (row,) = table.to_pylist()
    name = series["LicenseName"][0].as_py()
    assert row["LicenseName"] == name
    assert row["LicenseURI"] == series["LicenseURI"][0].as_py()
    assert row["SeriesCount"] == series.num_rows
    assert row["LicenseText"].startswith(f"The collection {COLLECTION} is distributed under {name}")
    assert row["Path"] == f"images/{COLLECTION}/LICENSE~{quote(name)}.txt"
    assert texts(lake, table) == [row["LicenseText"]]
    assert lake.read_table(LICENSES, COLLECTION).equals(table)
    assert [r.query["SeriesInstanceUID"] for r in archive.faults.calls("getImage")] == smallest(series)[:1]


def test_a_second_run_asks_for_no_image(archive: TestArchive, client: NbiaClient, lake: Lake, series: pa.Table) -> None:
    first = keep_licenses(client, lake, COLLECTION, series)
    archive.faults.reset()
    assert keep_licenses(client, lake, COLLECTION, series).equals(first)
    assert archive.faults.seen == []


def test_a_file_that_was_removed_is_written_again_without_a_request(
    archive: TestArchive, client: NbiaClient, lake: Lake, series: pa.Table
) -> None:
    (row,) = keep_licenses(client, lake, COLLECTION, series).to_pylist()
    lake.remove(row["Path"])
    archive.faults.reset()
    table = keep_licenses(client, lake, COLLECTION, series)
    assert texts(lake, table) == [row["LicenseText"]]
    assert archive.faults.seen == []


def test_every_licence_has_its_text_also_two_of_one_name_and_none_at_all(
    archive: TestArchive, client: NbiaClient, lake: Lake, series: pa.Table
) -> None:
    mixed = changed(changed(series, "LicenseName", [BY, BY, None]), "LicenseURI", ["http://a", "https://a", None])
    table = keep_licenses(client, lake, COLLECTION, mixed)
    assert [(r["LicenseName"], r["LicenseURI"], r["SeriesCount"]) for r in table.to_pylist()] == [
        (None, None, 7),
        (BY, "http://a", 7),
        (BY, "https://a", 7),
    ]
    paths = table["Path"].to_pylist()
    assert paths[0] == f"images/{COLLECTION}/LICENSE~unnamed.txt"
    assert paths[1] == f"images/{COLLECTION}/LICENSE~{quote(BY)}.txt"
    assert paths[2].startswith(f"images/{COLLECTION}/LICENSE~{quote(BY)}~")
    assert texts(lake, table) == table["LicenseText"].to_pylist()
    assert archive.faults.count("getImage") == 3


def test_a_licence_that_no_series_names_any_more_stays_and_the_others_keep_their_path(
    client: NbiaClient, lake: Lake, series: pa.Table
) -> None:
    before = keep_licenses(client, lake, COLLECTION, changed(series, "LicenseName", [NC])).to_pylist()
    after = keep_licenses(client, lake, COLLECTION, changed(series, "LicenseName", [BY])).to_pylist()
    assert [(r["LicenseName"], r["SeriesCount"]) for r in after] == [(BY, series.num_rows), (NC, 0)]
    assert {**after[1], "SeriesCount": series.num_rows} == before[0]


NO_TEXT = {
    "empty": zips.altered(lambda entries: [("LICENSE", b""), *entries[1:]]),
    "absent": zips.altered(lambda entries: entries[1:]),
    "no files": zips.altered(zips.nothing_at_all),
}


@pytest.mark.parametrize("fault", NO_TEXT.values(), ids=NO_TEXT.keys())
def test_a_server_without_a_text_leaves_a_hole_a_warning_and_another_try(
    archive: TestArchive,
    client: NbiaClient,
    lake: Lake,
    series: pa.Table,
    fault: object,
    caplog: pytest.LogCaptureFixture,
) -> None:
    archive.faults.inject("getImage", fault)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        (row,) = keep_licenses(client, lake, COLLECTION, series).to_pylist()
    assert (row["LicenseText"], row["Path"]) == (None, None)
    assert f"{COLLECTION}: the archive serves no text for {row['LicenseName']}" in caplog.text
    assert archive.faults.count("getImage") == 1
    (row,) = keep_licenses(client, lake, COLLECTION, series).to_pylist()
    assert row["LicenseText"].startswith("The collection")


def test_another_series_is_asked_when_the_smallest_is_hidden(
    archive: TestArchive, client: NbiaClient, lake: Lake, series: pa.Table
) -> None:
    archive.faults.inject("getImage", answer(400, b"The user has not been granted the access"))
    (row,) = keep_licenses(client, lake, COLLECTION, series).to_pylist()
    assert row["LicenseText"].startswith("The collection")
    assert [r.query["SeriesInstanceUID"] for r in archive.faults.calls("getImage")] == smallest(series)[:2]


@pytest.mark.parametrize("status", [400, 500])
def test_a_refusal_that_stays_costs_few_requests_and_no_run(
    archive: TestArchive,
    client: NbiaClient,
    lake: Lake,
    series: pa.Table,
    status: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    archive.faults.inject("getImage", answer(status, b"Server was not able"), times=20)
    with caplog.at_level(logging.WARNING):
        (row,) = keep_licenses(client, lake, COLLECTION, series).to_pylist()
    assert row["LicenseText"] is None
    assert f"status {status}" in caplog.text
    assert len({r.query["SeriesInstanceUID"] for r in archive.faults.calls("getImage")}) == 3


def test_an_account_that_is_refused_is_an_error(archive: TestArchive, lake: Lake, series: pa.Table) -> None:
    with archive.client(username="nobody", password="x") as client, pytest.raises(LoginRefused):
        keep_licenses(client, lake, COLLECTION, series)
    assert lake.read_table(LICENSES, COLLECTION).num_rows == 0


def test_duckdb_reads_the_texts(client: NbiaClient, place: Place, series: pa.Table) -> None:
    lake = Lake(str(place))
    table = keep_licenses(client, lake, COLLECTION, series)
    found = duckdb.execute(f"SELECT Collection, LicenseText FROM '{place}/tables/licences/*/*.parquet'").fetchall()
    assert found == [(COLLECTION, table["LicenseText"][0].as_py())]


def test_the_stream_is_left_once_the_text_is_there(fresh_nbia_archive: NbiaArchive, place: Place) -> None:
    uid = fresh_nbia_archive.control.add_series("TCGA-DEMO", slices=600)
    with NbiaClient(fresh_nbia_archive.url, options=FAST) as client:
        (row,) = [r for r in client.series("TCGA-DEMO").to_pylist() if r["SeriesInstanceUID"] == uid]
        assert row["FileSize"] > 15_000_000
        keep_licenses(client, Lake(str(place)), "TCGA-DEMO", pa.Table.from_pylist([row], schema=SERIES.schema))
        (asked,) = [r for r in fresh_nbia_archive.control.requests() if r["endpoint"] == "getImage"]
        assert asked["bytes"] < 1 << 20


def test_bytes_that_are_not_a_zip_are_not_a_license() -> None:
    with pytest.raises(BadAnswer, match="the LICENSE cannot be read: neither an entry nor the end comes next"):
        read_license(iter([b"<html>Sign in</html>"]))


def test_a_text_without_end_is_refused() -> None:
    with pytest.raises(BadAnswer, match="longer than 1,048,576 bytes"):
        read_license(iter([zips.pack([("LICENSE", bytes(MOST_BYTES + 1))])]))


def test_a_text_in_the_encoding_of_an_old_server_is_read() -> None:
    packed = zips.pack([("LICENSE", "Universit\u00e4t \u2013 Daten".encode("cp1252"))])
    assert read_license(iter([packed])) == "Universit\u00e4t \u2013 Daten"


def test_nothing_is_read_beyond_the_text() -> None:
    packed = zips.pack([("LICENSE", b"Cite us."), ("00000001.dcm", bytes(100))])
    end = packed.index(b"00000001.dcm") - 30

    def chunks() -> Iterator[bytes]:
        yield packed[:end]
        raise AssertionError("read on")

    assert read_license(chunks()) == "Cite us."


def test_no_patient_can_have_the_path_of_a_licence() -> None:
    path = license_path("A", BY)
    assert "~" in path
    assert encode(path.rsplit("/", 1)[-1]) != path.rsplit("/", 1)[-1]
    assert len(license_path("A", "\u00e4" * 100, "12345678").rsplit("/", 1)[-1]) < 255
