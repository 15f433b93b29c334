"""What the lake holds is read again, in rounds; what is damaged is found, named and fetched anew."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from nbia_pipeline.archive import ArchiveError, NbiaClient
from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.headers.shards import plan_headers, write_shard
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.object_store import ObjectStore
from nbia_pipeline.mirror.commit import commit
from nbia_pipeline.mirror.download import fetch_batch
from nbia_pipeline.mirror.journal import publish_series
from nbia_pipeline.mirror.plan import Bounds, make_plan
from nbia_pipeline.mirror.receipt import Receipt
from nbia_pipeline.mirror.series import wanted_series
from nbia_pipeline.mirror.unpack import VerifiedInstance
from nbia_pipeline.schema.headers import INSTANCE_HEADERS
from nbia_pipeline.schema.tables import IMAGE_SERIES, INSTANCES, SERIES, VERIFICATIONS
from nbia_pipeline.verify.inventory import stored_series
from nbia_pipeline.verify.refetch import NOT_LISTED, refetch
from nbia_pipeline.verify.rehash import VerifyRun, plan_verification, read_again
from nbia_pipeline_tests.helpers.archives import TestArchive
from nbia_pipeline_tests.helpers.faults import answer
from nbia_pipeline_tests.helpers.places import WHERE, Place, lake_in
from nbia_pipeline_tests.helpers.series import expected_files, files_of, series_table, wanted

SERIES_COUNT = 5
FILES = 3
FILE_BYTES = 1000


@pytest.fixture(params=WHERE)
def lake(request: pytest.FixtureRequest, place: Place) -> Lake:
    """A lake with five series of three files in collection A."""
    return filled(lake_in(place, request.param))


def filled(lake: Lake) -> Lake:
    for n in range(SERIES_COUNT):
        publish(lake, n, "first")
    commit(lake, "A", listing())
    return lake


def listing() -> pa.Table:
    return series_table([wanted(n) for n in range(SERIES_COUNT)])


def content(n: int, instance: int, version: str) -> bytes:
    return f"{version} {n} {instance} ".encode() * (FILE_BYTES // 10)


def publish(lake: Lake, n: int, version: str) -> None:
    """Publish a series as a run does; the tables follow with the next commit."""
    instances = []
    with lake.workspace() as work:
        (work / "files").mkdir()
        for i in range(FILES):
            data = content(n, i, version)
            (work / "files" / f"9.{n}.{i}.dcm").write_bytes(data)
            digest = hashlib.md5(data).hexdigest()
            instances.append(VerifiedInstance(f"9.{n}.{i}", None, i, len(data), digest))
        publish_series(lake, Receipt(wanted(n), "complete", 1, instances), work / "files")


def uid(n: int) -> str:
    return wanted(n).SeriesInstanceUID


def path(n: int, i: int) -> str:
    return f"images/A/P/1/{uid(n)}/9.{n}.{i}.dcm"


def read_all(lake: Lake, **how: Any) -> VerifyRun:
    return read_again(lake, plan_verification(lake, ["A"]), **how)


def order(lake: Lake) -> list[str]:
    return [h.uid for h in stored_series(lake, "A")]


def findings(lake: Lake) -> dict[str, str | None]:
    rows = lake.read_table(VERIFICATIONS, "A").to_pylist()
    return {r["SeriesInstanceUID"]: r["Finding"] for r in rows}


def after(series: int) -> Callable[[VerifyRun], bool]:
    """End a round once so many series were begun."""
    begun = itertools.count()
    return lambda done: next(begun) >= series


def test_a_whole_lake_is_read_and_recorded(lake: Lake) -> None:
    done = read_all(lake)
    size = sum(len(content(n, i, "first")) for n in range(SERIES_COUNT) for i in range(FILES))
    assert (done.wanted, done.wanted_bytes) == (SERIES_COUNT, size)
    assert (done.checked, done.files, done.bytes) == (SERIES_COUNT, SERIES_COUNT * FILES, size)
    assert done.damaged == [] and not done.stopped
    assert findings(lake) == {uid(n): None for n in range(SERIES_COUNT)}
    receipts = lake.read_table(IMAGE_SERIES, "A")
    assert lake.read_table(VERIFICATIONS, "A")["SeriesMD5"].equals(receipts["SeriesMD5"])


def lose_row(lake: Lake) -> None:
    rows = lake.read_table(INSTANCES, "A")
    lake.write_table(INSTANCES, rows.filter(pc.not_equal(rows["SOPInstanceUID"], "9.2.1")), "A")


def lose(lake: Lake, *instances: int) -> None:
    for i in instances:
        lake.remove(path(2, i))


def write(lake: Lake, data: bytes, *instances: int) -> None:
    for i in instances:
        lake.put_bytes(path(2, i), data)


def lose_one_and_add_five(lake: Lake) -> None:
    lose(lake, 0)
    write(lake, b"", 3, 4, 5, 6, 7)


WHOLE = content(2, 1, "first")
DAMAGES: dict[str, tuple[Callable[[Lake], None], str]] = {
    "missing": (lambda lake: lose(lake, 1), "missing 9.2.1.dcm"),
    "all missing": (lambda lake: lose(lake, 0, 1, 2), "missing 9.2.0.dcm, 9.2.1.dcm, 9.2.2.dcm"),
    "truncated": (lambda lake: write(lake, WHOLE[:-1], 1), "truncated 9.2.1.dcm"),
    "empty": (lambda lake: write(lake, b"", 1), "truncated 9.2.1.dcm"),
    "longer": (lambda lake: write(lake, WHOLE + b"x", 1), "longer than it was 9.2.1.dcm"),
    "changed": (lambda lake: write(lake, b"F" + WHOLE[1:], 1), "changed 9.2.1.dcm"),
    "extra": (lambda lake: write(lake, b"", 7), "extra 9.2.7.dcm"),
    "extra below": (lambda lake: lake.put_bytes(path(2, 1) + "~/old/x", b"x"), "extra 9.2.1.dcm~/old/x"),
    "a lost row": (
        lose_row,
        "extra 9.2.1.dcm; not matching the receipt: the rows of table instances, 2 of them",
    ),
    "several": (
        lose_one_and_add_five,
        "missing 9.2.0.dcm; extra 9.2.3.dcm, 9.2.4.dcm, 9.2.5.dcm and 2 more",
    ),
}


@pytest.mark.parametrize(("damage", "finding"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_found_and_named(lake: Lake, damage: Callable[[Lake], None], finding: str) -> None:
    damage(lake)
    finding = f"of {2 if damage is lose_row else 3} files: {finding}"
    done = read_all(lake)
    assert [(v.series.uid, v.finding) for v in done.damaged] == [(uid(2), finding)]
    assert done.checked == SERIES_COUNT
    assert findings(lake) == {uid(n): finding if n == 2 else None for n in range(SERIES_COUNT)}


FOREIGN = [
    ".DS_Store",
    "._9.2.1.dcm",
    ".nfs00000000012345670000001f",
    "Thumbs.db",
    "desktop.ini",
    ".AppleDouble/9.2.1.dcm",
    ".snapshot/hourly.0/9.2.1.dcm",
    "9.2.1.dcm~",
]


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_that_others_leave_in_any_folder_is_at_most_logged(
    lake: Lake, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    lake.put_bytes(f"images/A/P/1/{uid(2)}/{name}", b"\0\0\0\1Bud1")
    lake.put_bytes(f"images/A/{name}", b"\0\0\0\1Bud1")
    with caplog.at_level(logging.INFO, logger="nbia_pipeline"):
        done = read_all(lake)
    assert (done.damaged, done.checked, done.files) == ([], SERIES_COUNT, SERIES_COUNT * FILES)
    assert caplog.messages == [f"images/A/P/1/{uid(2)}: 1 files that are not the lake's own"]
    lake.put_bytes(f"images/A/P/1/{uid(2)}/more.dcm", b"x")
    assert [v.finding for v in read_all(lake).damaged] == ["of 3 files: extra more.dcm"]
    publish(lake, 2, "second")
    commit(lake, "A", listing())
    assert read_all(lake).damaged == []


def test_a_run_goes_on_where_the_last_one_stopped(lake: Lake) -> None:
    first, rest = order(lake)[:2], order(lake)[2:]
    done = read_all(lake, enough=after(2))
    assert done.stopped and done.checked == 2
    assert set(findings(lake)) == set(first)
    assert order(lake)[:3] == rest
    assert read_all(lake, enough=after(3)).checked == 3
    assert set(findings(lake)) == {uid(n) for n in range(SERIES_COUNT)}
    assert order(lake)[:2] == first
    assert not read_all(lake, enough=after(SERIES_COUNT)).stopped


def test_what_was_found_damaged_comes_first_until_it_is_fetched_anew(lake: Lake) -> None:
    lake.remove(path(4, 0))
    read_all(lake)
    for _ in range(2):
        assert order(lake)[0] == uid(4)
        assert [s.series for s in plan_verification(lake, ["A"], damaged_only=True)] == [1]
        assert read_all(lake, enough=after(1)).damaged
    publish(lake, 4, "first")
    commit(lake, "A", listing())
    assert plan_verification(lake, ["A"], damaged_only=True) == []
    assert order(lake)[-1] == uid(4)
    assert read_all(lake).damaged == []


def test_collections_with_damage_then_the_least_recent_ones_come_first(lake: Lake) -> None:
    tables = {t: lake.read_table(t, "A") for t in (IMAGE_SERIES, INSTANCES)}
    for name in ("B", "C"):
        for table, rows in tables.items():
            lake.write_table(table, rows, name)
    names = ["A", "B", "C"]
    read_again(lake, plan_verification(lake, ["A"]))
    assert [s.collection for s in plan_verification(lake, names)] == ["B", "C", "A"]
    done = read_again(lake, plan_verification(lake, ["C"]))  # its rows lead to the files of A, not to its own
    assert len(done.damaged) == SERIES_COUNT
    assert [s.collection for s in plan_verification(lake, names)] == ["C", "B", "A"]


def test_a_sample_is_random_and_repeatable(lake: Lake) -> None:
    def chosen(seed: int, size: int = 2) -> frozenset[str]:
        (share,) = plan_verification(lake, ["A"], sample=size, seed=seed)
        assert share.only is not None and share.series == len(share.only)
        return share.only

    assert chosen(7) == chosen(7) and len(chosen(7)) == 2
    assert frozenset().union(*(chosen(seed) for seed in range(40))) == {uid(n) for n in range(SERIES_COUNT)}
    assert len(chosen(1, size=99)) == SERIES_COUNT
    done = read_again(lake, plan_verification(lake, ["A"], sample=2, seed=7))
    assert (done.wanted, done.checked) == (2, 2)
    assert set(findings(lake)) == chosen(7)


def test_a_series_that_a_run_replaced_is_not_damaged(lake: Lake) -> None:
    shares = plan_verification(lake, ["A"])
    publish(lake, 2, "second")
    done = read_again(lake, shares)
    # On an object store the series has no receipt until the commit, and is left out.
    assert done.damaged == [] and done.checked == SERIES_COUNT - isinstance(lake._store, ObjectStore)
    commit(lake, "A", clear_mark=False)
    assert read_again(lake, shares).checked == SERIES_COUNT
    assert findings(lake)[uid(2)] is None
    assert lake.read_table(INSTANCES, "A").num_rows == SERIES_COUNT * FILES


def test_only_what_the_lake_says_it_holds_is_read(lake: Lake) -> None:
    rows = lake.read_table(IMAGE_SERIES, "A").to_pylist()
    rows[1].update(Status="withdrawn")
    rows[2].update(Status="withdrawn", Bytes=None)
    rows[3].update(Status="quarantined", Bytes=None)
    lake.write_table(IMAGE_SERIES, pa.Table.from_pylist(rows, schema=IMAGE_SERIES.schema), "A")
    assert sorted(order(lake)) == [uid(0), uid(1), uid(4)]


@pytest.mark.disk("what a file is in the way of")
def test_a_lake_in_which_nothing_can_be_recorded_is_read_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lake = filled(Lake(str(tmp_path / "lake")))
    lake.put_bytes("tables/verifications/Collection=A", b"in the way")
    lake.remove(path(2, 1))
    with caplog.at_level(logging.WARNING):
        done = read_all(lake)
    assert done.checked == SERIES_COUNT
    assert [v.series.uid for v in done.damaged] == [uid(2)]
    assert "cannot record which series were verified" in caplog.text


def test_what_was_read_is_recorded_when_the_run_is_interrupted(lake: Lake) -> None:
    def stop(done: VerifyRun) -> None:
        if done.checked == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_all(lake, on_progress=stop, threads=1)
    assert len(findings(lake)) == 3


def test_many_series_are_read_in_chunks(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbia_pipeline.verify.rehash.CHUNK_SERIES", 2)
    lake.remove(path(0, 0))
    lake.remove(path(4, 0))
    done = read_all(lake)
    assert done.checked == SERIES_COUNT and len(done.damaged) == 2
    assert read_all(lake, enough=after(3)).checked == 3


COLLECTION = "QIN_Breast.v2"


@pytest.fixture
def mirrored(client: NbiaClient, place: Place) -> Lake:
    """A lake with a collection as the engine fetches it."""
    lake = Lake(str(place / "mirrored"))
    series = client.series(COLLECTION)
    lake.write_table(SERIES, series, COLLECTION)
    fetch_batch(client, lake, wanted_series(series))
    commit(lake, COLLECTION, series)
    return lake


def damage(lake: Lake, count: int) -> dict[str, str]:
    """Change a byte of one file of each of the first series; returns the directories of these series by UID."""
    damaged = {}
    for held in sorted(stored_series(lake, COLLECTION), key=lambda h: h.uid)[:count]:
        place, size = sorted(lake.sizes(held.path).items())[0]
        lake.put_bytes(place, bytes(size))
        damaged[held.uid] = held.path
    return damaged


def statuses(lake: Lake) -> dict[str, str]:
    return {r["SeriesInstanceUID"]: r["Status"] for r in lake.read_table(IMAGE_SERIES, COLLECTION).to_pylist()}


def todo(lake: Lake, *, retry: bool = True) -> list[str]:
    plan = make_plan(
        lake.read_table(SERIES, COLLECTION), lake.read_table(IMAGE_SERIES, COLLECTION), bounds=Bounds(retry=retry)
    )
    return [w.SeriesInstanceUID for w in plan.todo]


@pytest.mark.stores("seaweedfs")
def test_damaged_series_are_fetched_anew_and_only_these(
    archive: TestArchive, client: NbiaClient, mirrored: Lake, demo: Catalog
) -> None:
    damaged = damage(mirrored, 2)
    done = read_again(mirrored, plan_verification(mirrored, [COLLECTION]))
    assert {v.series.uid for v in done.damaged} == set(damaged)
    assert without_header(mirrored) == 2
    archive.faults.reset()
    told: list[str] = []
    outcome = refetch(client, mirrored, done.damaged, on_result=lambda r: told.append(r.status))
    assert outcome.failures == {} and sorted(outcome.uids[COLLECTION]) == sorted(damaged)
    assert told == ["complete", "complete"]
    assert {r.query["SeriesInstanceUID"] for r in archive.faults.calls("getImageWithMD5Hash")} == set(damaged)
    for series, place in damaged.items():
        assert files_of(mirrored, place) == expected_files(demo, series)
    assert set(statuses(mirrored).values()) == {"complete"}
    again = read_again(mirrored, plan_verification(mirrored, [COLLECTION]))
    assert again.damaged == [] and again.checked == 5
    assert without_header(mirrored) == 0, "the same digest, and yet they are read again"


def without_header(lake: Lake) -> int:
    """Make the tables of headers, and return how many files have none."""
    for shard in plan_headers(lake, COLLECTION):
        write_shard(lake, shard)
    headers = lake.read_table(INSTANCE_HEADERS, COLLECTION, columns=["Header"])["Header"]
    assert len(headers) == lake.count_rows(INSTANCES, COLLECTION)
    return int(headers.null_count)


def test_what_cannot_be_mended_is_complete_no_more(archive: TestArchive, client: NbiaClient, mirrored: Lake) -> None:
    (series,) = damage(mirrored, 1)
    done = read_again(mirrored, plan_verification(mirrored, [COLLECTION]))
    archive.faults.inject("getImageWithMD5Hash", answer(400, b"The user has not been granted the access"))
    outcome = refetch(client, mirrored, done.damaged)
    assert outcome.uids == {}
    assert "unavailable" in outcome.failures[series] and "not been granted" in outcome.failures[series]
    assert statuses(mirrored)[series] == "unavailable"
    assert todo(mirrored) == [series]
    assert series not in [h.uid for h in stored_series(mirrored, COLLECTION)]


def test_a_series_is_not_complete_while_it_is_mended(archive: TestArchive, client: NbiaClient, mirrored: Lake) -> None:
    (series,) = damage(mirrored, 1)
    done = read_again(mirrored, plan_verification(mirrored, [COLLECTION]))
    archive.faults.inject("getImageWithMD5Hash", answer(503), times=50)
    with pytest.raises(ArchiveError):
        refetch(client, mirrored, done.damaged)
    (row,) = [r for r in mirrored.read_table(IMAGE_SERIES, COLLECTION).to_pylist() if r["SeriesInstanceUID"] == series]
    assert (row["Status"], row["Bytes"], row["SeriesMD5"]) == ("pending", None, None)
    assert todo(mirrored, retry=False) == [series]


def test_a_series_that_is_listed_no_more_keeps_what_is_left(
    archive: TestArchive, client: NbiaClient, mirrored: Lake
) -> None:
    (series,) = damage(mirrored, 1)
    listed = mirrored.read_table(SERIES, COLLECTION)
    mirrored.write_table(SERIES, listed.filter(pc.not_equal(listed["SeriesInstanceUID"], series)), COLLECTION)
    before = mirrored.read_table(IMAGE_SERIES, COLLECTION)
    archive.faults.reset()
    done = read_again(mirrored, plan_verification(mirrored, [COLLECTION]))
    assert refetch(client, mirrored, done.damaged).failures == {series: NOT_LISTED}
    assert mirrored.read_table(IMAGE_SERIES, COLLECTION).equals(before)
    assert archive.faults.seen == []
