"""Optional is optional: without any of the calls that only enrich, the main job ends well and one warning says so."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import dagster as dg
import pytest

from nbia_pipeline.archive import ClientOptions, LoginRefused, NbiaClient, NotServed
from nbia_pipeline.archive.errors import ServerError
from nbia_pipeline.archive.optional import FEW_TRIES, SECONDS, OptionalCalls
from nbia_pipeline.changes.catalog import describe
from nbia_pipeline.changes.listing import Fetched, with_earlier
from nbia_pipeline.changes.metadata import metadata_of
from nbia_pipeline.defs.assets import tables
from nbia_pipeline.embedded.control.operations import Operations
from nbia_pipeline.embedded.demo.catalog import CART
from nbia_pipeline.lake import Lake
from nbia_pipeline.mirror.engine import Mirror
from nbia_pipeline.mirror.receipt import COUNT_AND_SIZE
from nbia_pipeline.schema import tables as t
from nbia_pipeline.settings import Settings
from nbia_pipeline_tests.helpers.archives import FAST, TestArchive
from nbia_pipeline_tests.helpers.faults import Fault, html
from nbia_pipeline_tests.helpers.pipeline import COLLECTIONS, Pipeline

SMALL = "Lung Phantom CT"
IMPATIENT = ClientOptions(connect_timeout=2, read_timeout=0.3, tries=5, backoff=0.01, max_backoff=0.05)
DESCRIPTION = ("Description", "DescriptionURI")

# What is null without a call, by table; the calls that no table needs have none.
NULL_WITHOUT: dict[str, dict[str, Sequence[str]]] = {
    "getCollectionDescriptions": {"collections": DESCRIPTION},
    "getCollectionValuesAndCounts": {"collections": ["PatientCount"]},
    "getModalityValuesAndCounts": {"modalities": ["PatientCount"]},
    "getBodyPartValuesAndCounts": {"body_parts": ["PatientCount"]},
    "getManufacturerValuesAndCounts": {"manufacturers": ["PatientCount"]},
    "getLicenses": {},
    "getImage": {"licences": ["LicenseText"]},
    "getMD5Hierarchy": {},
    "logout": {},
}
ONLY_V2: dict[str, dict[str, Sequence[str]]] = {
    "getM5HashForImage": {},
    "getSeriesMetadata2": {},
    "getContentsByName": {},
}
ONLY_V4: dict[str, dict[str, Sequence[str]]] = {"getMD5HashForImage": {}}
# Nothing of the main job asks for these while all is well.
NOT_ASKED = {"getLicenses", "getMD5Hierarchy", "logout", *ONLY_V2, *ONLY_V4} - {"getSeriesMetadata2"}
EVERY = [("v2", e) for e in {**NULL_WITHOUT, **ONLY_V2}] + [("v4", e) for e in {**NULL_WITHOUT, **ONLY_V4}]

BROKEN = {
    "404": Fault("status", status=404),
    "405": Fault("status", status=405),
    "401": Fault("status", status=401),
    "403": Fault("status", status=403),
    "400": Fault("answer", status=400, body="Invalid query parameter"),
    "500": Fault("status", status=500),
    "503": Fault("status", status=503),
    "504": Fault("status", status=504),
    "html": html(),
    "garbage": Fault("garbage"),
    "dropped": Fault("drop"),
    "silent": Fault("stall", fraction=0),
}


@dataclass
class Outcome:
    """What one run of the main job left.

    Attributes:
        lake: the lake.
        warnings: of the metadata of each table.
    """

    lake: Lake
    warnings: dict[str, str] = field(default_factory=dict)

    def column(self, table: str, name: str) -> list[Any]:
        """Return a column of a table."""
        collection = SMALL if t.TABLES[table].partitioned else None
        return list(self.lake.read_table(t.TABLES[table], collection)[name].to_pylist())


def main_job(url: str, folder: Path, api: str = "v2", options: ClientOptions = FAST) -> Outcome:
    """Do what the main job does, with the images of one collection; only Dagster is not there."""
    outcome = Outcome(Lake(str(folder)))
    settings = Settings(archive=url, api=api, lake=str(folder))
    with NbiaClient(url, api=api, options=options) as client:

        def write(table: t.Table, fetched: Any, collection: str | None = None) -> None:
            figures = tables._write(table, client, outcome.lake, fetched, collection)
            outcome.warnings.update({table.name: figures["warning"]} if "warning" in figures else {})

        before = outcome.lake.read_table(t.COLLECTIONS)
        write(t.COLLECTIONS, lambda: describe(client, settings, before=before))
        for table, ask in (
            (t.MODALITIES, client.modality_values),
            (t.BODY_PARTS, client.body_part_values),
            (t.MANUFACTURERS, client.manufacturer_values),
        ):
            earlier = outcome.lake.read_table(table)
            write(table, lambda a=ask, b=earlier: with_earlier(Fetched(a()), b, ["PatientCount"]))
        result = Mirror(client, outcome.lake).run(SMALL)
        assert result.failed == {}
        assert result.wanted == result.already_there + result.fetched == 4
        write(t.SERIES_METADATA, lambda: metadata_of(client, outcome.lake, SMALL), SMALL)
    return outcome


def without(archive: TestArchive, *endpoints: str, fault: Fault | None = None) -> None:
    """Let calls of the archive be missing, or fail in another way, from now on."""
    archive.faults.traffic.plan([replace(fault or Fault("missing"), endpoint=e) for e in endpoints], 0)


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings of the log about what the archive does not answer."""
    return [r.message for r in caplog.records if r.levelno == logging.WARNING and "does not answer" in r.message]


@pytest.mark.parametrize(("api", "endpoint"), EVERY)
def test_the_main_job_ends_well_without_a_call_that_only_enriches(
    archive: TestArchive, tmp_path: Path, caplog: pytest.LogCaptureFixture, api: str, endpoint: str
) -> None:
    without(archive, endpoint)
    outcome = main_job(archive.url, tmp_path, api)
    null = {**NULL_WITHOUT, **ONLY_V2, **ONLY_V4}[endpoint]
    for table, columns in {k: v for k, v in NULL_WITHOUT.items() if v}.items():
        for name, of in columns.items():
            for column in of:
                values = outcome.column(name, column)
                assert values, (table, name)
                assert (set(values) == {None}) == (column in null.get(name, ())), (name, column)
    sentences = warned(caplog)
    assert len(sentences) == (endpoint not in NOT_ASKED)
    assert all(f"/{endpoint} " in sentence or f"/{endpoint}," in sentence for sentence in sentences)
    shown = {table: warning for table, warning in outcome.warnings.items() if table in {**null, "series_metadata": ()}}
    assert all(sentences[0] in warning for warning in shown.values())
    assert bool(shown) == bool(sentences)
    assert outcome.column("series_metadata", "SeriesInstanceUID") == outcome.column("series", "SeriesInstanceUID")
    assert archive.faults.count(endpoint) <= len(COLLECTIONS)


@pytest.mark.parametrize("fault", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("api", ["v2", "v4"])
def test_a_call_that_is_broken_or_slow_is_as_good_as_missing(
    archive: TestArchive, tmp_path: Path, caplog: pytest.LogCaptureFixture, api: str, fault: Fault
) -> None:
    endpoints = [e for e, null in NULL_WITHOUT.items() if null]
    without(archive, *endpoints, fault=fault)
    outcome = main_job(archive.url, tmp_path, api, IMPATIENT)
    for null in NULL_WITHOUT.values():
        assert all(set(outcome.column(name, c)) == {None} for name, of in null.items() for c in of)
    assert len(warned(caplog)) >= len(endpoints) - 1  # of a series that is refused, the license says so itself
    counts = {e: archive.faults.count(e) for e in endpoints}
    # 3 failures in a row, each in few tries; a token that is refused is replaced once.
    assert all(n <= (3 + FEW_TRIES) * FEW_TRIES for n in counts.values()), counts


def test_a_missing_call_is_made_once_and_a_slow_one_in_few_tries(archive: TestArchive, tmp_path: Path) -> None:
    without(archive, "getCollectionDescriptions")
    main_job(archive.url, tmp_path / "a")
    assert archive.faults.count("getCollectionDescriptions") == 1
    archive.faults.reset()
    without(archive, "getCollectionDescriptions", fault=BROKEN["504"])
    main_job(archive.url, tmp_path / "b", options=IMPATIENT)
    assert archive.faults.count("getCollectionDescriptions") == FEW_TRIES


def test_failures_that_are_not_in_a_row_do_not_cost_the_other_collections() -> None:
    fails = [True, True, False] * 3
    calls = OptionalCalls()

    def ask(fail: bool) -> int:
        if fail:
            raise ServerError("the archive fails on this one", status=500)
        return 1

    assert [calls.ask("descriptions", partial(ask, fail), "x") for fail in fails] == [None, None, 1] * 3
    assert [calls.ask("descriptions", partial(ask, fail), "x") for fail in [True] * 3 + [False]] == [None] * 4


def test_a_call_that_only_enriches_waits_a_minute_at_most(
    archive: TestArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    with archive.client(options=replace(FAST, read_timeout=300)) as client:
        client.collection_values()
        waits: list[float] = []
        send = client._session._http.request

        def spy(*args: Any, **kwargs: Any) -> Any:
            waits.append(kwargs["timeout"][1])
            return send(*args, **kwargs)

        monkeypatch.setattr(client._session._http, "request", spy)
        client.optional("collection_counts", client.collection_counts, "the number of patients")
        client.collection_values()
        with archive.client(options=replace(FAST, read_timeout=5)) as hasty:
            monkeypatch.setattr(hasty._session._http, "request", spy)
            hasty.optional("collection_counts", hasty.collection_counts, "the number of patients")
    assert waits[:2] == [SECONDS, 300]
    assert set(waits[2:]) <= {5, FAST.connect_timeout}


# --- what the lake has stays

ENRICHING = [(table, column) for null in NULL_WITHOUT.values() for table, of in null.items() for column in of]


@pytest.mark.parametrize("api", ["v2", "v4"])
@pytest.mark.parametrize("fault", ["missing", "504", "html"])
def test_what_the_lake_has_stays_when_the_archive_does_not_answer(
    archive: TestArchive, tmp_path: Path, api: str, fault: str
) -> None:
    first = main_job(archive.url, tmp_path, api)
    before = {key: first.column(*key) for key in ENRICHING}
    without(archive, *(e for e, null in NULL_WITHOUT.items() if null), fault=BROKEN.get(fault))
    second = main_job(archive.url, tmp_path, api)
    assert {key: second.column(*key) for key in ENRICHING} == before
    for table in ("collections", "modalities", "body_parts", "manufacturers"):
        assert "does not answer" in second.warnings[table]
    assert "sent no PatientCount: the values of the last run stay" in second.warnings["modalities"]


def test_descriptions_that_stop_halfway_leave_the_earlier_ones_of_the_others(
    archive: TestArchive, tmp_path: Path
) -> None:
    before = main_job(archive.url, tmp_path).column("collections", "Description")
    without(archive, "getCollectionDescriptions", fault=replace(BROKEN["504"], skip=2))
    after = main_job(archive.url, tmp_path)
    assert after.column("collections", "Description") == before
    assert "the descriptions of collections" in after.warnings["collections"]


@pytest.mark.parametrize("fault", [Fault("empty"), Fault("answer", status=200, body="[]")], ids=["nothing", "list"])
def test_empty_answers_are_suspicious_where_there_was_something(
    archive: TestArchive, tmp_path: Path, fault: Fault
) -> None:
    first = main_job(archive.url, tmp_path)
    before = {key: first.column(*key) for key in ENRICHING}
    without(archive, "getCollectionDescriptions", "getCollectionValuesAndCounts", fault=fault)
    second = main_job(archive.url, tmp_path)
    assert {key: second.column(*key) for key in ENRICHING} == before
    assert second.warnings["collections"] == (
        "the archive sent no PatientCount and no Description and no DescriptionURI and no DescriptionTimestamp: "
        "the values of the last run stay"
    )


def test_one_collection_without_a_description_has_none(archive: TestArchive, tmp_path: Path) -> None:
    main_job(archive.url, tmp_path)
    fault = Fault("answer", status=200, body="[]", endpoint="getCollectionDescriptions", times=1)
    archive.faults.traffic.plan([fault], 0)
    after = main_job(archive.url, tmp_path)
    assert after.column("collections", "Description").count(None) == 1
    assert after.warnings == {}


# --- what is not optional


def test_an_account_that_is_refused_is_not_a_missing_call(archive: TestArchive) -> None:
    with archive.client(username="nobody", password="x") as client, pytest.raises(LoginRefused):
        client.optional("collection_counts", client.collection_counts, "the number of patients")
    with archive.client() as client:
        client.collection_values()
        archive.tokens.expire_all()
        without(archive, "token", fault=BROKEN["401"])
        with pytest.raises(LoginRefused):
            client.modality_values()
        assert client.warnings == []


def test_a_table_without_its_own_listing_is_an_error(archive: TestArchive, tmp_path: Path) -> None:
    for endpoint in ("getCollectionValues", "getModalityValues", "getSeries"):
        without(archive, endpoint)
        with pytest.raises(Exception, match="the archive has no such endpoint"):
            main_job(archive.url, tmp_path)


@pytest.mark.parametrize("status", [404, 405, 500])
def test_an_archive_without_carts_says_what_to_do_instead(archive: TestArchive, status: int) -> None:
    without(archive, "getContentsByName", fault=Fault("missing") if status == 500 else BROKEN[str(status)])
    with archive.client() as client, pytest.raises(NotServed, match="has no shared carts: name the series") as caught:
        client.contents_by_name(CART)
    assert "/services/v2/getContentsByName name=Demo cart" in str(caught.value)


@pytest.mark.parametrize("fault", ["missing", "404", "500", "504"])
def test_the_end_of_a_session_needs_no_logout(
    archive: TestArchive, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    without(archive, "logout", fault=BROKEN.get(fault))
    with archive.client() as client:
        assert client.collection_values()
    assert archive.faults.count("logout") == 1
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


# --- digests: the calls that repair a download


@pytest.mark.parametrize("fault", ["missing", "504", "html"])
@pytest.mark.parametrize(("api", "endpoint"), [("v2", "getM5HashForImage"), ("v4", "getMD5HashForImage")])
def test_an_image_is_repaired_without_the_call_for_its_digest(
    archive: TestArchive, tmp_path: Path, api: str, endpoint: str, fault: str
) -> None:
    lost = Fault("lost_file", endpoint="getImageWithMD5Hash", times=1)
    missing = replace(BROKEN.get(fault, Fault("missing")), endpoint=endpoint)
    archive.faults.traffic.plan([lost, missing], 0)
    main_job(archive.url, tmp_path, api)
    assert archive.faults.count(endpoint) > 0


@pytest.mark.parametrize(
    "fault",
    ["missing", "html", "504"],
)
@pytest.mark.parametrize("api", ["v2", "v4"])
def test_images_without_digests_are_mirrored_without_the_digest_of_their_series(
    archive: TestArchive, tmp_path: Path, api: str, fault: str
) -> None:
    control: Operations = cast(Any, archive.faults.app).state.archive.control
    uids = [row["SeriesInstanceUID"] for row in control.series(SMALL)]
    control.digests(uids, "null")
    try:
        without(archive, "getMD5Hierarchy", fault=BROKEN.get(fault))
        outcome = main_job(archive.url, tmp_path, api)
    finally:
        control.digests(uids, None)
    assert archive.faults.count("getMD5Hierarchy") > 0
    assert outcome.lake.read_table(t.IMAGE_SERIES, SMALL)["Proof"].to_pylist() == [COUNT_AND_SIZE] * 4


# --- through Dagster, all at once


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        yield instance


@pytest.mark.slow
@pytest.mark.parametrize("api", ["v2", "v4"])
def test_the_main_job_in_dagster_without_any_optional_call(
    archive: TestArchive, instance: dg.DagsterInstance, tmp_path: Path, api: str
) -> None:
    without(archive, *NULL_WITHOUT, *ONLY_V2, *ONLY_V4)
    settings = Settings(
        archive=archive.url, api=api, lake=str(tmp_path / "lake"), collections=(SMALL,), images=(SMALL,), headers=()
    )
    pipeline = Pipeline(settings, instance)
    catalog = pipeline.run("catalogue")
    assert catalog.success
    warnings = {
        e.asset_key.path[-1]: str(e.step_materialization_data.materialization.metadata["warning"].value)
        for e in catalog.get_asset_materialization_events()
        if e.asset_key is not None
    }
    assert set(warnings) == {"collections", "modalities", "body_parts", "manufacturers"}
    assert "the descriptions of collections" in warnings["collections"]
    assert all("the archive does not answer for the number of patients" in w for w in warnings.values())
    updated = pipeline.run("update", partition_key=SMALL)
    assert updated.success, pipeline.sentence(updated)
    counts = "SELECT count(*), count(PatientCount), count(Description) FROM t"
    assert pipeline.sql("collections", counts) == [(1, 0, 0)]
    assert pipeline.sql("image_series", "SELECT Status, count(*) FROM t GROUP BY 1") == [("complete", 4)]
    assert pipeline.sql("licences", "SELECT count(*), count(LicenseText) FROM t") == [(1, 0)]
    assert pipeline.sql("series_metadata", "SELECT count(*) FROM t") == [(4,)]
