from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pydicom
import pytest
import requests

from nbia_pipeline.embedded.catalog.model import CATALOG_SCHEMA, Catalog
from nbia_pipeline.embedded.demo.idc import IdcIndexMissingError, idc_catalog
from nbia_pipeline.embedded.server.app import create_app
from nbia_pipeline_tests.helpers.archive_client import ArchiveClient
from nbia_pipeline_tests.helpers.tiny import Clock, running

pytestmark = pytest.mark.slow


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "idc_index_data", None)
    with pytest.raises(IdcIndexMissingError, match=r"pip install 'nbia-pipeline\[idc\]'"):
        idc_catalog()


@pytest.fixture(scope="module")
def series() -> pa.Table:
    pytest.importorskip("idc_index_data")
    return idc_catalog().series


def test_facts_of_the_index(series: pa.Table) -> None:
    assert series.schema.equals(CATALOG_SCHEMA)
    assert series.num_rows > 900_000
    assert pc.count_distinct(series["SeriesInstanceUID"]).as_py() == series.num_rows
    for name in ("SeriesInstanceUID", "Collection", "PatientID", "FileSize", "TimeStamp", "LicenseURI"):
        assert series[name].null_count == 0
    assert pc.all(pc.greater_equal(series["TimeStamp"], series["DateReleased"])).as_py()
    assert pc.unique(series["Visibility"]).to_pylist() == [1]
    assert pc.all(pc.starts_with(series["CollectionURI"], "https://doi.org/10.")).as_py()
    days = pc.unique(series["DateReleased"].cast(pa.date32())).to_pylist()
    assert len(days) > 5
    assert all(day.day == 1 for day in days)


def test_one_collection_over_http(series: pa.Table) -> None:
    wanted = series.filter(pc.equal(series["Collection"], "4d_lung"))
    with running(create_app(Catalog(series.slice(0, 50_000)))) as url:
        rows = requests.get(f"{url}/services/v4/getSeries", {"Collection": "4d_lung"}, timeout=60).json()
    assert [row["SeriesInstanceUID"] for row in rows] == wanted["SeriesInstanceUID"].to_pylist()
    assert [row["FileSize"] for row in rows] == wanted["FileSize"].to_pylist()


@pytest.fixture(scope="module")
def whole_site(series: pa.Table) -> Iterator[ArchiveClient]:
    clock = Clock()
    app = create_app(Catalog(series), clock=clock)
    with running(app) as url:
        yield ArchiveClient(url, app, clock)


def largest(series: pa.Table) -> str:
    counts = series["Collection"].value_counts().to_pylist()
    return str(max(counts, key=lambda c: c["counts"])["values"])


def test_one_series_among_a_million_can_be_changed(whole_site: ArchiveClient, series: pa.Table) -> None:
    collection = largest(series)
    rows = series.filter(pc.equal(series["Collection"], collection))
    uid = rows["SeriesInstanceUID"][rows.num_rows // 2].as_py()
    for change in (whole_site.control.hide, whole_site.control.show, whole_site.control.replace):
        change(uid)
    whole_site.control.edit(uid, LicenseName="Other")
    whole_site.control.show(uid)
    (row,) = whole_site.get("v4/getSeries", SeriesInstanceUID=uid).json()
    assert row["LicenseName"] == "Other"
    whole_site.control.reset()


def test_a_new_series_among_a_million_has_small_images(whole_site: ArchiveClient, series: pa.Table) -> None:
    slide = series.filter(pc.equal(series["Modality"], "SM"))["SeriesInstanceUID"][0].as_py()
    for like, modality in ((None, None), (slide, "CT")):
        uid = whole_site.control.add_series("4d_lung", like=like)
        (row,) = whole_site.get("v2/getSeries", SeriesInstanceUID=uid).json()
        assert modality in (None, row["Modality"])
        answer = whole_site.get("v2/getImageWithMD5Hash", SeriesInstanceUID=uid)
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            images = [archive.read(n) for n in archive.namelist() if n.endswith(".dcm")]
        assert len(images) == row["ImageCount"] == 6
        assert sum(map(len, images)) == row["FileSize"] < 100_000
        assert pydicom.dcmread(io.BytesIO(images[0])).PatientID == row["PatientID"]
    whole_site.control.reset()


def test_the_largest_collection_comes_whole_and_the_same_again(whole_site: ArchiveClient, series: pa.Table) -> None:
    collection = largest(series)
    first = whole_site.get("v4/getSeries", Collection=collection).content
    assert whole_site.get("v4/getSeries", Collection=collection).content == first
    count = pc.sum(pc.equal(series["Collection"], collection)).as_py()
    assert first.count(b'{"SeriesInstanceUID"') == count
