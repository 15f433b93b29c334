from __future__ import annotations

import sys

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from nbia_pipeline.embedded.catalogue import FACTS
from nbia_pipeline.embedded.idc import IdcIndexMissingError, idc_catalogue
from nbia_pipeline_tests.embedded.tiny import running


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "idc_index_data", None)
    with pytest.raises(IdcIndexMissingError, match=r"pip install 'nbia-pipeline\[idc\]'"):
        idc_catalogue()


@pytest.fixture(scope="module")
def series() -> pa.Table:
    pytest.importorskip("idc_index_data")
    return idc_catalogue().series


def test_facts_of_the_index(series: pa.Table) -> None:
    assert series.schema.equals(FACTS)
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
    import requests

    from nbia_pipeline.embedded.catalogue import Catalogue
    from nbia_pipeline.embedded.server import create_app

    wanted = series.filter(pc.equal(series["Collection"], "4d_lung"))
    with running(create_app(Catalogue("idc", series.slice(0, 50_000)))) as url:
        rows = requests.get(f"{url}/services/v4/getSeries", {"Collection": "4d_lung"}, timeout=60).json()
    assert [row["SeriesInstanceUID"] for row in rows] == wanted["SeriesInstanceUID"].to_pylist()
    assert [row["FileSize"] for row in rows] == wanted["FileSize"].to_pylist()
