"""The checks of the images: what each finds, what it says, and what it asks for."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from nbia_pipeline import clock
from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.definitions import build_definitions
from nbia_pipeline.defs.checks import images
from nbia_pipeline.defs.checks.check import Finding, Report, Subject
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.layout import table_path
from nbia_pipeline.mirror.commit import commit
from nbia_pipeline.mirror.download import fetch_batch
from nbia_pipeline.mirror.journal import BEING_REPLACED, DAMAGED
from nbia_pipeline.mirror.licenses import keep_licenses
from nbia_pipeline.mirror.repair import ADVICE
from nbia_pipeline.mirror.series import wanted_series
from nbia_pipeline.schema import Table
from nbia_pipeline.schema.arrow import among, with_column
from nbia_pipeline.schema.tables import IMAGE_SERIES, INSTANCES, LICENSES, SERIES, VERIFICATIONS
from nbia_pipeline.settings import Settings
from nbia_pipeline.verify.inventory import stored_series
from nbia_pipeline_tests.helpers.archives import FAST, TestArchive
from nbia_pipeline_tests.helpers.faults import NO_SUCH_ENDPOINT, Fault, answer, html

CT, MIXED = "Lung Phantom CT", "HeadNeckMix"
COUNTS = {CT: 4, MIXED: 21}
LISTS = "getSOPInstanceUIDs"
IMAGE_CALLS = {"getImage", "getImageWithMD5Hash", "getSingleImage", "getDCMImage"}


@pytest.fixture(scope="module")
def mirrored(demo_archive: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake with the images of two collections, as runs leave it."""
    lake = Lake(str(tmp_path_factory.mktemp("mirrored")))
    with NbiaClient(demo_archive, options=FAST) as client:
        for name in COUNTS:
            series = client.series(name)
            lake.write_table(SERIES, series, name)
            keep_licenses(client, lake, name, series)
            fetch_batch(client, lake, wanted_series(series))
            commit(lake, name, series)
    return Path(lake.uri)


@pytest.fixture(autouse=True)
def _all_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more series than these, each day asks for others."""
    monkeypatch.setattr(images, "ASKED_PER_COLLECTION", max(COUNTS.values()))


@pytest.fixture
def lake(mirrored: Path, tmp_path: Path) -> Lake:
    """A copy of that lake, to be damaged."""
    return Lake(str(shutil.copytree(mirrored, tmp_path / "lake")))


@pytest.fixture
def subject(archive: TestArchive, lake: Lake) -> Iterator[Subject]:
    with client_of(archive) as client:
        yield Subject(lake, Settings(archive=archive.url, images=("*",)), MIXED, client)


def client_of(archive: TestArchive, **options: Any) -> NbiaClient:
    return NbiaClient(archive.url, options=replace(FAST, tries=1, **options))


complete = partial(images.complete, Naming())


def found(report: Report) -> list[Finding]:
    return list(report.findings)


def change(lake: Lake, table: Table, collection: str, to: Callable[[dict[str, Any]], object]) -> list[dict[str, Any]]:
    """Change the rows of a table in the order of their UIDs, each by a function."""
    rows = sorted(lake.read_table(table, collection).to_pylist(), key=lambda r: str(r.get("SeriesInstanceUID")))
    for row in rows:
        to(row)
    lake.write_table(table, pa.Table.from_pylist(rows, schema=table.schema), collection)
    return rows


# --- through Dagster


CHECKS = ["agrees_with_archive", "complete", "intact", "licensed"]
Evaluate = Callable[[], dict[tuple[str, str | None], dg.AssetCheckEvaluation]]


@pytest.fixture
def evaluate(archive: TestArchive, lake: Lake, tmp_path: Path) -> Iterator[Evaluate]:
    """Evaluate the checks of the images as Dagster does, without materializing anything, and without partitions."""
    selection = dg.AssetSelection.checks_for_assets(Naming().key("images"))
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:

        def run() -> dict[tuple[str, str | None], dg.AssetCheckEvaluation]:
            definitions = dg.Definitions.merge(
                build_definitions(Settings(archive=archive.url, lake=lake.uri, images=("*",), headers=())),
                dg.Definitions(jobs=[dg.define_asset_job("only_checks", selection=selection)]),
            )
            result = definitions.resolve_job_def("only_checks").execute_in_process(instance=instance)
            assert result.success
            return {(c.check_name, c.partition): c for c in result.get_asset_check_evaluations()}

        yield run


def test_a_good_lake_passes_without_a_request_for_an_image(archive: TestArchive, evaluate: Evaluate) -> None:
    checks = evaluate()
    assert {of: c.passed for of, c in checks.items()} == {(name, c): True for name in CHECKS for c in COUNTS}
    for collection, count in COUNTS.items():
        facts = {n: v.value for name in CHECKS for n, v in checks[name, collection].metadata.items()}
        assert (facts["read_series"], facts["stored_series"]) == (count, count)
        assert (facts["asked"], facts["not_held"], facts["findings"]) == (count, 0, 0)
        assert f"{count} of {count} series are in the lake" in str(checks["complete", collection].description)
    assert not IMAGE_CALLS & {r.endpoint for r in archive.faults.seen}
    assert archive.faults.count("getMD5Hierarchy") == 25
    # Of a few series the instances are listed, too: their figures may be wrong, and with them the proof.
    listed = sum(int(str(checks["agrees_with_archive", c].metadata["listed"].value)) for c in COUNTS)
    assert (listed, archive.faults.count(LISTS)) == (images.LISTED_AT_MOST, images.LISTED_AT_MOST)


def test_findings_are_named_in_a_table_with_the_command_that_mends_them(
    archive: TestArchive, lake: Lake, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbia_pipeline.defs.checks.check.SHOWN", 5)
    why = {"Status": "quarantined", "Reason": "short by one", "Bytes": None}
    rows = change(lake, IMAGE_SERIES, MIXED, lambda r: r.update(why))
    change(lake, LICENSES, MIXED, lambda r: r.update(LicenseText=None))
    checks = evaluate()
    complete = checks["complete", MIXED]
    assert not complete.passed and complete.severity == dg.AssetCheckSeverity.ERROR
    assert complete.metadata["findings"].value == 21
    table = complete.metadata["first_findings"]
    assert isinstance(table, dg.TableMetadataValue)
    assert [r.data["series"] for r in table.records] == [r["SeriesInstanceUID"] for r in rows[:5]]
    uid = rows[0]["SeriesInstanceUID"]
    assert table.records[0].data["finding"] == f"series {uid} is quarantined: short by one"
    command = "nbia-pipeline run " + " ".join(f"--series {r['SeriesInstanceUID']}" for r in rows[:5])
    assert complete.metadata["remedy"].value == f"`{command}`"
    assert complete.description is not None
    assert f"It failed with 21 findings; the first: `series {uid} is quarantined: short by one" in complete.description
    assert "To fix it: `nbia-pipeline run --series" in complete.description
    # Nothing is held, so that nothing lacks a licence or can be damaged; and the other collection is well.
    assert [of for of, check in checks.items() if not check.passed] == [("complete", MIXED)]


def test_a_hint_is_a_warning(archive: TestArchive, evaluate: Evaluate) -> None:
    archive.faults.inject("getMD5Hierarchy", answer(200, b"0" * 32))
    archive.faults.inject("getM5HashForImage", answer(200, b"0" * 32))
    checks = evaluate()
    (check,) = [c for (name, _), c in checks.items() if name == "agrees_with_archive" and not c.passed]
    assert check.severity == dg.AssetCheckSeverity.WARN
    assert check.metadata["findings"].value == 1


# --- complete


def test_complete_tells_what_is_wrong_with_each_series(lake: Lake, subject: Subject) -> None:
    now = clock.utc_now()
    new: dict[str, Any] = {"Status": "pending", "Bytes": None, "Reason": "not fetched yet", "FetchedAt": None}
    refused: dict[str, Any] = {"Status": "unavailable", "Bytes": None, "Reason": "the archive refuses the call"}
    # Each with what is said of it; True where it is only a warning.
    states: list[tuple[dict[str, Any], str, bool]] = [
        (new, "pending: not fetched yet", True),
        ({**new, "Reason": "no room: it has 9 bytes"}, "pending: no room: it has 9 bytes", True),
        ({**new, "FetchedAt": now, "Reason": f"{DAMAGED}: gone"}, f"pending: {DAMAGED}: gone", False),
        ({**new, "FetchedAt": now, "Reason": BEING_REPLACED}, f"pending: {BEING_REPLACED}", True),
        (refused, "unavailable: the archive refuses the call", False),
        ({"FileSize": 1}, "outdated: the archive changed it since it was fetched", True),
        ({"FileSize": 1, "Reason": "short", "RefreshFailedAt": now}, "outdated: short", False),
        (new, "lost: its receipt is missing, although its files were in the lake", False),
    ]
    left = iter(state for state, *_ in states)
    uids = [r["SeriesInstanceUID"] for r in change(lake, IMAGE_SERIES, MIXED, lambda r: r.update(next(left, {})))]
    never_there = lake.read_table(INSTANCES, MIXED)
    lake.write_table(INSTANCES, never_there.filter(pc.invert(among(never_there["SeriesInstanceUID"], uids[:2]))), MIXED)
    report = complete(subject)
    findings = found(report)
    assert {f.series: (f.what.partition(" is ")[2], f.warning) for f in findings} == {
        uid: (what, warning) for uid, (_, what, warning) in zip(uids, states, strict=False)
    }
    # Errors come first, and only these are named in the command.
    assert [f.warning for f in findings] == [False] * 4 + [True] * 4
    errors = {f"--series {uid}" for uid, (*_, warning) in zip(uids, states, strict=False) if not warning}
    command, *named = str(report.remedy(findings)).split(" --")
    assert (command, {f"--{name}" for name in named}) == ("nbia-pipeline run", errors)
    assert report.summary == "13 of 21 series are in the lake; 4 pending: the disk has no room for 1"


def test_what_is_refused_within_a_day_of_its_release_is_a_warning(
    lake: Lake, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = iter([{"Status": "unavailable", "Bytes": None}])
    uid = change(lake, IMAGE_SERIES, MIXED, lambda r: r.update(next(refused, {})))[0]["SeriesInstanceUID"]
    released = max(t for t in lake.read_table(SERIES, MIXED)["DateReleased"].to_pylist() if t)
    submitted = max(t for t in lake.read_table(SERIES, MIXED)["TimeStamp"].to_pylist() if t)
    for hours, warning in ((1, True), (25, False)):
        moment = max(released, submitted) + timedelta(hours=hours)
        monkeypatch.setattr("nbia_pipeline.clock.utc_now", lambda moment=moment: moment)
        rows = lake.read_table(SERIES, MIXED)
        newest = with_column(rows, "DateReleased", pa.repeat(pa.scalar(released, pa.timestamp("us")), len(rows)))
        lake.write_table(SERIES, newest, MIXED)
        change(lake, IMAGE_SERIES, MIXED, lambda r: r.update(DateReleased=released))
        assert [(f.series, f.warning) for f in found(complete(subject))] == [(uid, warning)]


def test_a_run_in_progress_is_why_series_are_pending(lake: Lake, subject: Subject) -> None:
    pending = {"Status": "pending", "Bytes": None, "Reason": "not fetched yet", "FetchedAt": None}
    change(lake, IMAGE_SERIES, MIXED, lambda r: r.update(pending))
    lake.write_table(INSTANCES, INSTANCES.schema.empty_table(), MIXED, may_empty=True)
    with dg.DagsterInstance.ephemeral() as instance:
        of_a_run = replace(
            subject, instance=instance, run_id="another", last={"left_series": 4, "not_asked_series": 21}
        )
        idle = complete(replace(of_a_run, shared={}))
        why = "the bounds of the last run left 4, the selection of the last run left out 17"
        assert idle.summary == f"0 of 21 series are in the lake; 21 pending: {why}"
        assert idle.remedy(found(idle)) == "nbia-pipeline run"
        dg.DagsterInstance.add_run(instance, run_of("nbia_images", MIXED))
        busy = complete(replace(of_a_run, shared={}))
        assert (
            busy.summary == f"0 of 21 series are in the lake; 21 pending: another run is fetching the collection, {why}"
        )
        assert busy.remedy(found(busy)) is None
        (run,) = instance.get_runs()
        alone = complete(replace(of_a_run, shared={}, run_id=run.run_id))
        assert alone.summary == idle.summary


def run_of(job: str, collection: str) -> dg.DagsterRun:
    return dg.DagsterRun(job_name=job, tags={"dagster/partition": collection}, status=dg.DagsterRunStatus.STARTED)


def test_no_run_is_advised_for_what_the_archive_must_repair(lake: Lake, subject: Subject) -> None:
    states = iter([{"Status": "quarantined", "Reason": f"it is empty. {ADVICE}"}, {"Status": "pending"}])
    rows = change(lake, IMAGE_SERIES, MIXED, lambda r: r.update({"Bytes": None, **next(states, {})}))
    quarantined, pending = (row["SeriesInstanceUID"] for row in rows[:2])
    report = complete(subject)
    findings = found(report)
    both = [f for f in findings if f.series in (quarantined, pending)]
    assert report.remedy(both) == f"nbia-pipeline run --series {pending}"
    assert report.remedy([f for f in both if f.series == quarantined]) is None
    assert f"series {quarantined} is quarantined: it is empty. {ADVICE}" in {f.what for f in findings}


def test_a_withdrawn_series_is_not_missing(lake: Lake, subject: Subject) -> None:
    gone = change(lake, IMAGE_SERIES, CT, lambda r: r.update(Status="withdrawn", Bytes=None))[0]["SeriesInstanceUID"]
    listed = lake.read_table(SERIES, CT)
    lake.write_table(SERIES, listed.filter(pc.equal(listed["SeriesInstanceUID"], gone)), CT)
    # Pruned and listed again: it wants to be fetched. The others are not listed, and do not.
    (finding,) = found(complete(replace(subject, collection=CT)))
    assert (finding.series, finding.warning) == (gone, True)


def test_only_mirrored_collections_are_to_be_complete(archive: TestArchive, lake: Lake, subject: Subject) -> None:
    change(lake, IMAGE_SERIES, MIXED, lambda r: r.update(Status="quarantined", Bytes=None))
    assert len(found(complete(subject))) == 21
    other = replace(subject, settings=Settings(archive=archive.url, images=(CT, "TCGA-DEMO")))
    assert found(complete(other)) == []


# --- intact


def lose_a_file(lake: Lake, collection: str) -> str:
    held = stored_series(lake, collection)[-1]
    lake.remove(min(lake.sizes(held.path)))
    return held.uid


def test_damage_is_told_until_it_is_mended(
    lake: Lake, subject: Subject, monkeypatch: pytest.MonkeyPatch, archive: TestArchive
) -> None:
    uid = lose_a_file(lake, MIXED)
    report = images.intact(subject)
    (finding,) = found(report)
    assert finding.series == uid
    assert finding.what.startswith(f"series {uid} is damaged, of ") and ": missing " in finding.what
    assert report.remedy([finding]) == "nbia-pipeline verify --damaged --repair"
    # However little is read, what is known to be damaged is read first, even if time is up.
    monkeypatch.setattr(images, "INTACT_BYTES", 1)
    monkeypatch.setattr(images, "INTACT_SECONDS", 0)
    for _ in range(3):
        assert [f.series for f in found(images.intact(subject))] == [uid]
    assert archive.faults.seen == []


def verified(lake: Lake) -> int:
    return sum(lake.count_rows(VERIFICATIONS, name) for name in COUNTS)


def test_repeated_checks_cover_the_lake(lake: Lake, subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "INTACT_BYTES", 1)
    seen = [0]
    while seen[-1] < 25:
        # A run of one collection reads of the other one too; who waits longest comes first.
        chosen = images.most_urgent(lake, [MIXED])
        assert sorted(chosen) == sorted(COUNTS)
        shared: dict[str, Any] = {}
        for n, collection in enumerate(chosen):
            report = images.intact(replace(subject, collection=collection, to_go=2 - n, shared=shared))
            assert found(report) == []
            assert report.properties["read_series"] < 25
        seen.append(verified(lake))
        assert seen[-1] > seen[-2]
    assert len(seen) > 2


def test_a_check_ends_in_time(lake: Lake, subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "INTACT_SECONDS", 0)
    assert images.intact(subject).properties["read_series"] == 0


# --- agrees_with_archive


def test_another_digest_means_outdated(archive: TestArchive, lake: Lake, subject: Subject) -> None:
    other, none, *_ = (row["SeriesInstanceUID"] for row in images._chosen(subject))
    different, empty = answer(200, b"0" * 32), answer(200, b"")
    archive.faults.inject("getMD5Hierarchy", replace(different, series=other), replace(empty, series=none))
    archive.faults.inject("getM5HashForImage", answer(200, b"0" * 32))
    report = images.agrees_with_archive(subject)
    (finding,) = found(report)
    assert finding.series == other
    receipts = {r["SeriesInstanceUID"]: r for r in lake.read_table(IMAGE_SERIES, MIXED).to_pylist()}
    assert finding.what == (
        f"series {finding.series} is outdated: the archive has different files: its digest is {'0' * 32}, the lake's "
        f"is {receipts[str(finding.series)]['SeriesMD5']}"
    )
    assert report.properties == {"asked": 21, "not_held": 1, "listed": 4}
    assert archive.faults.count(LISTS) == 1 + 4  # of that whose digest differs as well


def one_unlisted(archive: TestArchive, uid: str) -> None:
    archive.faults.inject(LISTS, replace(answer(200, b'[{"SOPInstanceUID": "9.9"}]'), series=uid))


def no_digest_of_the_first(archive: TestArchive, uid: str) -> None:
    archive.faults.inject("getM5HashForImage", answer(200, b" "), answer(200, b"1" * 31))


@pytest.mark.parametrize("evidence", [one_unlisted, no_digest_of_the_first])
def test_other_instances_or_one_other_image_mean_outdated(
    archive: TestArchive, subject: Subject, evidence: Callable[[TestArchive, str], None]
) -> None:
    uid = images._chosen(subject)[0]["SeriesInstanceUID"]
    archive.faults.inject("getMD5Hierarchy", replace(answer(200, b"f" * 32), series=uid))
    evidence(archive, uid)
    (finding,) = found(images.agrees_with_archive(subject))
    # By its digest or by its list, whichever is answered first.
    assert finding.what.startswith(f"series {finding.series} is outdated: ")


@pytest.mark.parametrize(
    "evidence",
    [(), (answer(200, b" "),), (answer(500, NO_SUCH_ENDPOINT),), (answer(504),), (html(),)],
    ids=["digests of images", "a blank", "no such call", "504", "a page"],
)
def test_another_digest_of_a_series_alone_means_nothing(
    archive: TestArchive, subject: Subject, evidence: tuple[Fault, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive may store some digests with leading zeros and some without."""
    monkeypatch.setattr(images, "ASKED_PER_SERIES", 3)
    archive.faults.inject("getMD5Hierarchy", answer(200, b"f" * 32))
    archive.faults.inject("getM5HashForImage", *evidence, times=3)
    assert found(images.agrees_with_archive(subject)) == []
    assert archive.faults.count("getM5HashForImage") <= 3


@pytest.mark.parametrize("in_flight", [1, 3])
def test_an_archive_that_cannot_be_asked_is_said_and_left_alone(
    archive: TestArchive, subject: Subject, in_flight: int
) -> None:
    archive.faults.inject("getMD5Hierarchy", answer(503), times=50)
    with client_of(archive, max_in_flight=in_flight) as client:
        (finding,) = found(images.agrees_with_archive(replace(subject, client=client)))
    assert "the archive cannot be asked for its digests" in finding.what and "503" in finding.what
    # What is under way at the first failure is the last.
    assert 1 <= archive.faults.count("getMD5Hierarchy") <= in_flight
    assert archive.faults.count(LISTS) == 0


def test_a_few_series_are_listed_and_only_those_proven_by_figures(
    archive: TestArchive, lake: Lake, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "LISTED_AT_MOST", 2)
    assert images.agrees_with_archive(subject).properties == {"asked": 21, "not_held": 0, "listed": 2}
    assert images.agrees_with_archive(subject).properties == {"asked": 21, "not_held": 0, "listed": 0}  # the same run
    archive.faults.reset()
    monkeypatch.setattr(images, "LISTED_AT_MOST", 5)
    proofs = iter(["md5+count+size"])
    by_figures, *_ = change(lake, IMAGE_SERIES, MIXED, lambda r: r.update(Proof=next(proofs, "md5")))
    again = replace(subject, shared={})
    assert images.agrees_with_archive(again).properties == {"asked": 21, "not_held": 0, "listed": 1}
    (call,) = archive.faults.calls(LISTS)
    assert call.query["SeriesInstanceUID"] == by_figures["SeriesInstanceUID"]


def test_a_few_series_are_asked_for_and_others_each_day(
    archive: TestArchive, lake: Lake, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "ASKED_PER_COLLECTION", 2)
    of_ct = replace(subject, collection=CT)
    assert images.agrees_with_archive(of_ct).properties["asked"] == 2
    assert archive.faults.count("getMD5Hierarchy") == 2
    uids = set(lake.read_table(IMAGE_SERIES, CT)["SeriesInstanceUID"].to_pylist())
    days, orders = [], set()
    for day in range(1, 29):
        moment = datetime(2031, 2, day)  # noqa: DTZ001 - the tables state no zone
        monkeypatch.setattr("nbia_pipeline.clock.utc_now", lambda moment=moment: moment)
        days.append(frozenset(r["SeriesInstanceUID"] for r in images._chosen(of_ct)))
        orders.add(tuple(images.by_day(lake, [CT, MIXED])))
        assert len(days[-1]) == 2
    assert frozenset().union(*days) == uids
    assert orders == {(CT, MIXED), (MIXED, CT)}
    monkeypatch.setattr(images, "ASKED_AT_MOST", 3)
    assert len(images._chosen(of_ct)) == 1  # two were asked for in this run before


def test_what_the_archive_has_no_digest_of_is_not_compared(lake: Lake, subject: Subject) -> None:
    change(lake, IMAGE_SERIES, CT, lambda r: r.update(Proof="count+size"))
    change(lake, IMAGE_SERIES, MIXED, lambda r: r.update(Status="withdrawn"))
    assert [images._chosen(replace(subject, collection=name)) for name in COUNTS] == [[], []]


# --- licensed


def test_a_licence_without_text_is_found_once_for_all_its_series(lake: Lake, subject: Subject) -> None:
    (license,) = change(lake, LICENSES, MIXED, lambda r: r.update(LicenseText=None, Path=None))
    (finding,) = found(images.licensed(subject))
    assert finding.what.startswith(f"the text of {license['LicenseName']!r} is not in the lake")
    assert "; 21 series have it: " in finding.what


def test_series_without_a_licence_are_found(lake: Lake, subject: Subject) -> None:
    states: Iterator[dict[str, Any]] = iter(
        [{"LicenseName": None, "LicenseURI": None}, {"LicenseName": "", "LicenseURI": None}]
    )
    rows = change(lake, SERIES, CT, lambda r: r.update(next(states, {})))
    (finding,) = found(images.licensed(replace(subject, collection=CT)))
    assert finding.what == "2 series name no license: " + ", ".join(r["SeriesInstanceUID"] for r in rows[:2])


def test_what_is_not_in_the_lake_needs_no_licence(lake: Lake, subject: Subject) -> None:
    unnamed: Iterator[dict[str, Any]] = iter([{"LicenseName": None, "LicenseURI": None}])
    change(lake, SERIES, CT, lambda r: r.update(next(unnamed, {})))
    refused: Iterator[dict[str, Any]] = iter([{"Status": "unavailable", "Bytes": None}])
    change(lake, IMAGE_SERIES, CT, lambda r: r.update(next(refused, {})))
    assert found(images.licensed(replace(subject, collection=CT))) == []


def test_a_damaged_table_is_a_finding(lake: Lake, evaluate: Evaluate) -> None:
    lake.put_bytes(table_path(INSTANCES.name, CT), b"")
    checks = evaluate()
    intact = checks["intact", CT]
    assert not intact.passed and checks["intact", MIXED].passed
    assert f"{table_path(INSTANCES.name, CT)} in the lake" in str(intact.description)
    assert "To fix it: `nbia-pipeline verify --repair`" in str(intact.description)
