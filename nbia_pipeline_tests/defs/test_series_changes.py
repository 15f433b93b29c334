"""The feed of changes through a real Dagster instance, from an archive that changes; the clock is moved by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from nbia_pipeline import clock
from nbia_pipeline.changes.present import withdrawn_series
from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.embedded.control.fault import Fault
from nbia_pipeline.embedded.server.app import create_app
from nbia_pipeline.lake import Lake
from nbia_pipeline.schema.tables import IMAGE_SERIES, SERIES, SERIES_METADATA, SERIES_SEEN
from nbia_pipeline.settings import Settings
from nbia_pipeline_tests.helpers.pipeline import COLLECTIONS, QIN, TABLES, LivePipeline, Pipeline
from nbia_pipeline_tests.helpers.tiny import running

pytestmark = pytest.mark.slow


@pytest.fixture
def world(
    demo: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[LivePipeline]:
    app = create_app(demo)
    with (
        running(app) as url,
        dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance,
    ):
        api = getattr(request, "param", "v2")
        world = LivePipeline(url, app.state.archive.control, tmp_path / "lake", instance, api)
        monkeypatch.setattr(clock, "utc_now", lambda: world.time)
        world.materialize("collections", collection=None)
        yield world


def facts(world: LivePipeline, uid: str) -> dict[str, Any]:
    return next(r for r in world.control.series() if r["SeriesInstanceUID"] == uid)


def test_the_first_listing_adds_every_series(world: LivePipeline) -> None:
    assert sorted(world.look()) == sorted((uid, "added", None, None, None, 1) for uid in world.uids())
    figures = world.metadata_of("series_changes")
    assert (figures["added"], figures["revised"], figures["listed"], figures["missing"]) == (5, 0, 5, 0)
    assert [r.data["Change"] for r in figures["first_changes"].records] == ["added"] * 5
    times = world.sql("series_changes", "SELECT DISTINCT ListedAt, SeenAt, RunID IS NOT NULL FROM t")
    assert times == [(world.time, world.time, True)]


def test_nothing_new_says_nothing_and_asks_for_no_metadata(world: LivePipeline) -> None:
    world.look()
    assert world.look() == []
    asked = world.asked()
    assert (asked["getSeries"], asked["getSeriesMetadata2"], asked["getSeriesMetaData"]) == (1, 0, 0)
    assert (world.metadata_of("series_metadata")["asked"], world.metadata_of("series_metadata")["kept"]) == (0, 5)
    # The asset again, on the same listing: the feed knows it.
    world.materialize("series_changes")
    assert len(world.feed(QIN)) == 5


@pytest.mark.parametrize("world", ["v2", "v4"], indirect=True)
def test_every_kind_of_change_is_told_once_and_metadata_follow(world: LivePipeline) -> None:
    first, second, third, fourth, fifth = world.uids()
    world.look()
    license = facts(world, second)["LicenseName"]
    added = world.control.add_series(QIN, patient="NEW-1")
    world.control.edit(second, LicenseName="CC0")
    world.control.edit(third, SeriesDescription=None)
    world.control.hide(fourth)
    world.control.delete(fifth)
    news = world.look()
    assert {(uid, change, column, new) for uid, change, column, _, new, _ in news} == {
        (added, "added", None, None),
        (second, "revised", "LicenseName", "CC0"),
        (third, "revised", "SeriesDescription", None),
    }
    assert {(old, version) for _, change, column, old, _, version in news if column == "LicenseName"} == {(license, 2)}
    assert world.metadata_of("series_changes")["missing"] == 2
    assert (world.metadata_of("series_metadata")["asked"], world.metadata_of("series_metadata")["kept"]) == (3, 1)
    assert world.sql("series_metadata", f"SELECT LicenseName FROM t WHERE SeriesInstanceUID = '{second}'") == [("CC0",)]
    held = {uid for (uid,) in world.sql("series_metadata", "SELECT SeriesInstanceUID FROM t")}
    assert held == {added, first, second, third}
    # Two listings agree, six hours apart.
    assert world.look(5) == []
    assert sorted(world.look(1)) == sorted((uid, "withdrawn", None, None, None, 2) for uid in (fourth, fifth))
    assert world.metadata_of("series_changes")["withdrawn"] == 2
    assert withdrawn_series(world.lake, QIN) == {fourth, fifth}
    world.control.show(fourth)
    assert world.look() == [(fourth, "returned", None, None, None, 3)]
    assert world.metadata_of("series_metadata")["asked"] == 1
    assert withdrawn_series(world.lake, QIN) == {fifth}


def test_a_replaced_series_that_was_hidden_for_an_hour_is_revised_and_never_withdrawn(world: LivePipeline) -> None:
    uid = world.uids()[0]
    world.look()
    before = facts(world, uid)["TimeStamp"]
    world.later(1)
    world.control.replace(uid)
    assert world.look() == []
    world.control.show(uid)
    (change,) = world.look(2)
    assert change[:3] == (uid, "revised", "TimeStamp")
    assert (change[3], change[4]) == (f"{before}.000000", "2026-03-01 14:00:00.000000")


def test_one_that_returns_with_other_contents_is_returned_and_revised_in_one_version(world: LivePipeline) -> None:
    uid = world.uids()[0]
    world.look()
    world.control.hide(uid)
    world.look()
    assert [c[1] for c in world.look(7)] == ["withdrawn"]
    world.control.edit(uid, LicenseName="CC0")
    world.control.show(uid)
    assert sorted((c[1], c[2], c[5]) for c in world.look()) == [("returned", None, 3), ("revised", "LicenseName", 3)]


def test_a_change_of_dialect_is_no_change(world: LivePipeline) -> None:
    world.look()
    v4 = LivePipeline(world.settings.archive, world.control, Path(world.settings.lake), world.instance, "v4")
    v4.time = world.time
    for hours in (1, 2):
        world.later(hours)
        v4.materialize(*TABLES)
        assert len(world.feed(QIN)) == 5
    assert world.sql("series", f"SELECT count(Site) FROM t WHERE Collection = '{QIN}'") == [(5,)]
    assert world.look(3) == []
    # What the other dialect knows of the series was asked anew.
    assert world.metadata_of("series_metadata")["asked"] == 5


def test_a_collection_that_vanishes_is_withdrawn_by_the_catalogue_and_comes_back(world: LivePipeline) -> None:
    uids = world.uids()
    world.look()
    world.look(collection="TCGA-DEMO")
    world.materialize("images")
    world.control.hide(uids)
    for hours, gone in ((1, 0), (5, 0), (1, 5)):
        world.later(hours)
        world.materialize("collections", collection=None)
        assert [c[1] for c in world.feed(QIN)[5:]] == ["withdrawn"] * gone
    assert world.metadata_of("series_changes")["withdrawn"] == 5
    statuses = f"SELECT Status, count(*), count(Bytes) FROM t WHERE Collection = '{QIN}' GROUP BY 1"
    assert world.sql("image_series", statuses) == [("withdrawn", 5, 5)]
    assert world.lake.count_rows(SERIES, QIN) == 5, "no table with rows is replaced by none"
    assert len(world.feed("TCGA-DEMO")) == 9
    # The asset of its partition says the same.
    world.materialize("series_changes")
    assert len(world.feed(QIN)) == 10
    world.control.show(uids)
    world.later(1)
    world.materialize("collections", collection=None)
    assert [c[1] for c in world.look(0)] == ["returned"] * 5
    assert world.sql("image_series", statuses) == [("complete", 5, 5)]


def test_an_empty_answer_or_a_bad_token_withdraws_nothing(world: LivePipeline) -> None:
    world.look()
    before = world.lake.read_properties(SERIES_SEEN, QIN)
    world.control.expire_tokens()
    assert world.look(7) == []
    world.control.hide(world.uids())
    world.later(7)
    job = world.definitions.resolve_implicit_global_asset_job_def()
    keys = [dg.AssetKey(["nbia", a]) for a in ("series", "series_changes")]
    for _ in range(2):
        world.later(7)
        result = job.execute_in_process(
            instance=world.instance, partition_key=QIN, asset_selection=keys, raise_on_error=False
        )
        assert not result.success
    assert len(world.feed(QIN)) == 5
    assert world.metadata_of("series_changes")["missing"] == 0
    assert world.lake.read_properties(SERIES_SEEN, QIN)["listed_at"] > before["listed_at"]


def test_a_listing_that_lost_most_of_a_large_collection_is_worth_a_warning(world: LivePipeline) -> None:
    for n in range(20):
        world.control.add_series(QIN, patient=f"NEW-{n}")
    world.look()
    world.control.hide(world.uids()[:15])
    assert world.look() == []
    assert world.metadata_of("series_changes")["warning"].startswith(
        "15 of 25 series are missing from the last listing"
    )


def test_the_wait_can_be_configured(world: LivePipeline) -> None:
    world.look()
    world.control.hide(world.uids()[0])
    world.look()
    world.later(2)
    world.materialize("series", "series_changes", series_changes={"withdrawal_hours": 2})
    assert [c[1] for c in world.feed(QIN)[5:]] == ["withdrawn"]


def test_receipts_of_withdrawn_series_say_so_and_no_image_is_fetched_when_they_return(world: LivePipeline) -> None:
    world.look()
    world.materialize("images")
    uid = world.uids()[0]
    world.control.hide(uid)
    world.look()
    world.look(6)
    status = f"SELECT Status, Bytes IS NOT NULL FROM t WHERE SeriesInstanceUID = '{uid}'"
    assert world.sql("image_series", status) == [("withdrawn", True)]
    assert world.lake.count_rows(IMAGE_SERIES, QIN) == 5
    world.control.show(uid)
    world.look()
    assert world.sql("image_series", status) == [("complete", True)]
    world.materialize("images")
    assert world.asked()["getImageWithMD5Hash"] == 0


# --- metadata


def test_full_asks_about_every_series(world: LivePipeline) -> None:
    world.look()
    world.later(1)
    world.materialize("series_metadata", series_metadata={"full": True})
    assert world.asked()["getSeriesMetadata2"] == 1
    assert world.metadata_of("series_metadata")["asked"] == 5


def test_metadata_without_the_feed_are_asked_whole(world: LivePipeline) -> None:
    world.materialize("series", "series_metadata")
    assert world.metadata_of("series_metadata")["asked"] == 5
    world.later(1)
    world.materialize("series", "series_metadata")
    assert world.metadata_of("series_metadata")["asked"] == 5


def test_metadata_of_a_listing_that_the_feed_does_not_know_yet_are_asked_whole(world: LivePipeline) -> None:
    uid = world.uids()[0]
    world.look()
    world.later(1)
    world.control.edit(uid, LicenseName="CC0")
    world.materialize("series", "series_metadata")
    assert world.metadata_of("series_metadata")["asked"] == 5
    assert world.sql("series_metadata", f"SELECT LicenseName FROM t WHERE SeriesInstanceUID = '{uid}'") == [("CC0",)]


def test_a_series_without_metadata_is_asked_about_until_it_has_some(world: LivePipeline) -> None:
    uid = world.uids()[0]
    world.look()
    world.later(1)
    world.control.edit(uid, LicenseName="CC0")
    world.materialize("series", "series_changes")
    world.control.hide(uid)
    world.materialize("series_metadata")
    assert world.lake.count_rows(SERIES_METADATA, QIN) == 4, "an outdated row does not pose as a present one"
    world.control.show(uid)
    world.materialize("series_metadata")
    assert world.asked()["getSeriesMetadata2"] == 1
    assert (world.metadata_of("series_metadata")["asked"], world.metadata_of("series_metadata")["kept"]) == (1, 4)
    assert world.sql("series_metadata", f"SELECT LicenseName FROM t WHERE SeriesInstanceUID = '{uid}'") == [("CC0",)]


def test_all_partitions_in_one_run_read_as_one_data_set(world: LivePipeline) -> None:
    result = world.definitions.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=world.instance,
        asset_selection=[dg.AssetKey(["nbia", a]) for a in TABLES],
        tags={
            "dagster/asset_partition_range_start": COLLECTIONS[0],
            "dagster/asset_partition_range_end": COLLECTIONS[-1],
        },
    )
    assert result.success
    counts = world.sql(
        "series_changes", "SELECT Collection, count(*) FROM t WHERE Change = 'added' GROUP BY 1 ORDER BY 1"
    )
    assert counts == [("HeadNeckMix", 21), ("Lung Phantom CT", 4), ("QIN_Breast.v2", 5), ("TCGA-DEMO", 9)]
    keys = world.sql("series_changes", "SELECT count(DISTINCT (SeriesInstanceUID, Version, ColumnName)) FROM t")
    assert keys == [(39,)]


def test_a_collection_that_fails_does_not_keep_the_changes_of_the_others_back(world: LivePipeline) -> None:
    world.control.faults(Fault("html", endpoint="getSeries", times=1))
    result = world.definitions.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=world.instance,
        asset_selection=[dg.AssetKey(["nbia", a]) for a in TABLES],
        tags={
            "dagster/asset_partition_range_start": COLLECTIONS[0],
            "dagster/asset_partition_range_end": COLLECTIONS[-1],
        },
        raise_on_error=False,
    )
    assert "1 of 4 collections failed, the first: " in world.sentence(result)
    assert world.sql("series_changes", "SELECT count(DISTINCT Collection) FROM t") == [(3,)]
    assert len(world.instance.get_materialized_partitions(dg.AssetKey(["nbia", "series_changes"]))) == 3


def test_the_feed_is_between_series_and_metadata_in_the_graph(tmp_path: Path) -> None:
    world = Pipeline(Settings(lake=str(tmp_path)), dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)))
    graph = world.definitions.resolve_asset_graph()
    parents = {
        asset: {key.path[-1] for key in graph.get(dg.AssetKey(["nbia", asset])).parent_keys}
        for asset in ("series_changes", "series_metadata")
    }
    assert parents == {"series_changes": {"collections", "series"}, "series_metadata": {"series", "series_changes"}}
    assert Lake(world.settings.lake).collections_of(SERIES) == []
