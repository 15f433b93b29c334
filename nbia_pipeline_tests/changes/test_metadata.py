"""Which series the metadata are asked for again, when the calls serve more than those of the rows in the lake."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.archive.endpoints import metadata_columns
from nbia_pipeline.changes import metadata
from nbia_pipeline.changes.metadata import metadata_of
from nbia_pipeline.embedded.server.app import create_app
from nbia_pipeline.lake import Lake
from nbia_pipeline.mirror.engine import Mirror
from nbia_pipeline.schema.status import SERVED
from nbia_pipeline.schema.tables import SERIES_METADATA
from nbia_pipeline_tests.helpers.archives import FAST, serving
from nbia_pipeline_tests.helpers.faults import NO_SUCH_ENDPOINT, Faults, answer
from nbia_pipeline_tests.helpers.tiny import tiny_catalog

ALPHA = "Alpha Set"
SINGLY = {"SOPClassUID", "StudyID", "AnnotationSize", "TimeStamp"}


@pytest.fixture
def faults() -> Faults:
    return Faults(create_app(tiny_catalog()))


@pytest.fixture
def url(faults: Faults) -> Iterator[str]:
    with serving(faults) as url:
        yield url


def asks(url: str, lake: Lake, calls: str, collection: str = ALPHA, api: str = "v2") -> dict[str, Any]:
    """Write the table as the asset does; returns its figures."""
    with NbiaClient(url, api=api, options=FAST) as client:
        if not lake.count_rows(SERIES_METADATA, collection):
            Mirror(client, lake).update_tables(collection)
        fetched = metadata_of(client, lake, collection, calls=calls)
    lake.write_table(SERIES_METADATA, fetched.rows, collection, properties=fetched.properties)
    return dict(fetched.figures)


def filled(lake: Lake, collection: str = ALPHA) -> set[str]:
    table = lake.read_table(SERIES_METADATA, collection)
    return {name for name in (*SINGLY, "PixelSpacing") if table[name].null_count < table.num_rows}


ALL, NONE = {"asked": 3, "kept": 0, "single_calls": 3}, {"asked": 0, "kept": 3, "single_calls": 0}
IN_BULK = {"asked": 3, "kept": 0, "single_calls": 0}


@pytest.mark.parametrize(
    ("calls", "up_to", "figures"),
    [("auto", 3, ALL), ("auto", 2, IN_BULK), ("bulk", 3, IN_BULK), ("single", 0, ALL)],
)
def test_the_calls_are_chosen_by_setting_and_size(
    url: str, lake: Lake, monkeypatch: pytest.MonkeyPatch, calls: str, up_to: int, figures: dict[str, int]
) -> None:
    monkeypatch.setattr(metadata, "SINGLE_UP_TO", up_to)
    assert asks(url, lake, calls) == figures
    assert filled(lake) == (SINGLY if figures == ALL else set())
    assert asks(url, lake, calls) == NONE


def test_another_setting_asks_once_for_the_rows_that_lack_the_columns(url: str, lake: Lake) -> None:
    assert asks(url, lake, "bulk") == IN_BULK
    assert asks(url, lake, "single") == ALL
    assert filled(lake) == SINGLY
    assert [asks(url, lake, calls) for calls in ("single", "bulk", "auto")] == [NONE] * 3, "nothing is lost or repeated"
    assert filled(lake) == SINGLY


@pytest.mark.parametrize(("api", "lacks"), [("v2", SINGLY), ("v4", {"PixelSpacing", "SliceThickness"})])
def test_a_lake_of_an_older_version_is_completed_once(url: str, lake: Lake, api: str, lacks: set[str]) -> None:
    asks(url, lake, "auto", api=api)
    properties = lake.read_properties(SERIES_METADATA, ALPHA)
    rows = lake.read_table(SERIES_METADATA, ALPHA).to_pylist()
    older = [{name: value for name, value in row.items() if name not in lacks} for row in rows]
    table = pa.Table.from_pylist(older, schema=SERIES_METADATA.schema)
    del properties[SERVED]
    lake.write_table(SERIES_METADATA, table, ALPHA, properties=properties)
    assert asks(url, lake, "auto", api=api)["asked"] == 3
    assert asks(url, lake, "auto", api=api)["asked"] == 0
    assert lake.read_table(SERIES_METADATA, ALPHA).to_pylist() == rows


def test_a_collection_in_which_every_single_call_fails_keeps_its_rows_and_asks_again(url: str, lake: Lake) -> None:
    """3.1 has no address of its license: a 500. It is alone, so nothing shows that single calls work at all."""
    for _ in range(2):
        assert asks(url, lake, "auto", "beta-set")["asked"] == 1
        assert lake.count_rows(SERIES_METADATA, "beta-set") == 1
        assert filled(lake, "beta-set") == set()


def test_an_archive_whose_single_call_comes_back_is_asked_again(faults: Faults, url: str, lake: Lake) -> None:
    faults.inject("getSeriesMetaData", answer(500, NO_SUCH_ENDPOINT), times=3)
    assert asks(url, lake, "auto") == ALL
    assert filled(lake) == set()
    assert asks(url, lake, "auto") == ALL
    assert filled(lake) == SINGLY
    assert asks(url, lake, "auto") == NONE


def test_one_failure_among_others_is_remembered_as_asked(faults: Faults, url: str, lake: Lake) -> None:
    faults.inject("getSeriesMetaData", answer(500, NO_SUCH_ENDPOINT))
    assert asks(url, lake, "auto") == ALL
    assert lake.read_table(SERIES_METADATA, ALPHA)["SOPClassUID"].null_count >= 1
    assert asks(url, lake, "auto") == NONE


def test_the_columns_of_the_calls() -> None:
    assert metadata_columns("v2", single=True) - metadata_columns("v2", single=False) == SINGLY
    assert metadata_columns("v4", single=True) == metadata_columns("v4", single=False)
    assert not metadata_columns("v4", single=True) & {"SOPClassUID", "AnnotationSize"}
