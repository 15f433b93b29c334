"""Tables of images that are rebuilt: what becomes of series that the archive hides, revises, or never listed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.changes.feed import record_changes
from nbia_pipeline.changes.listing import Fetched, write_listing
from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.embedded.control.operations import Operations
from nbia_pipeline.embedded.server.app import create_app
from nbia_pipeline.lake import DamagedFile, Lake
from nbia_pipeline.lake.damage import damage_of
from nbia_pipeline.lake.layout import TABLES
from nbia_pipeline.lake.local_store import LocalStore
from nbia_pipeline.lake.object_store import ObjectStore
from nbia_pipeline.mirror import journal
from nbia_pipeline.mirror.engine import Mirror
from nbia_pipeline.mirror.prune import prunable, prune
from nbia_pipeline.mirror.rebuild import tables
from nbia_pipeline.mirror.rebuild.tables import rebuild
from nbia_pipeline.mirror.receipt import Receipt
from nbia_pipeline.mirror.series import wanted_series
from nbia_pipeline.schema import Table
from nbia_pipeline.schema.status import COMPLETE, PENDING, UNAVAILABLE, WITHDRAWN
from nbia_pipeline.schema.tables import IMAGE_SERIES, INSTANCES, SERIES, SERIES_CHANGES, SERIES_SEEN
from nbia_pipeline.verify.rehash import plan_verification, read_again
from nbia_pipeline_tests.helpers.archives import FAST, serving
from nbia_pipeline_tests.helpers.damage import DAMAGES, damage, tables_of
from nbia_pipeline_tests.helpers.places import WHERE, Place, lake_in
from nbia_pipeline_tests.helpers.series import Crash

NAME = "Lung Phantom CT"
LOST = [IMAGE_SERIES, INSTANCES]


@pytest.fixture(params=WHERE)
def lake(request: pytest.FixtureRequest, place: Place) -> Lake:
    return lake_in(place, request.param)


@pytest.fixture
def control(demo: Catalog) -> Iterator[tuple[Operations, NbiaClient]]:
    """An archive that can be changed, and a client of it."""
    app = create_app(demo)
    with serving(app) as url, NbiaClient(url, options=FAST) as client:
        yield app.state.archive.control, client


def mirrored(client: NbiaClient, lake: Lake) -> list[str]:
    """Mirror the collection; return its series."""
    assert Mirror(client, lake).run(NAME).fetched == 4
    return sorted(statuses(lake))


def statuses(lake: Lake) -> dict[str, str]:
    rows = lake.read_table(IMAGE_SERIES, NAME, columns=["SeriesInstanceUID", "Status"])
    return dict(zip(*(column.to_pylist() for column in rows.columns), strict=True))


def proofs(lake: Lake) -> set[str]:
    return set(lake.read_table(IMAGE_SERIES, NAME)["Proof"].to_pylist())


def expect_intact(lake: Lake, series: int) -> None:
    run = read_again(lake, plan_verification(lake, [NAME]))
    assert (run.checked, run.damaged) == (series, [])


@pytest.mark.parametrize("table", [*LOST, SERIES, SERIES_CHANGES, SERIES_SEEN], ids=lambda table: table.name)
def test_on_any_store(control: tuple[Operations, NbiaClient], lake: Lake, table: Table) -> None:
    mirrored(control[1], lake)
    before = tables_of(lake)
    damage(lake, table, DAMAGES["first half"], NAME)
    assert Mirror(control[1], lake).run(NAME).fetched == 0
    lost = {(SERIES_CHANGES.name, NAME)} if table == SERIES_CHANGES else set()
    now = tables_of(lake)
    assert {key for key in {*now, *before} if now.get(key) != before.get(key)} == lost
    expect_intact(lake, 4)


@pytest.mark.parametrize("table", LOST, ids=lambda table: table.name)
def test_a_withdrawn_series_keeps_its_files_and_can_be_pruned(
    control: tuple[Operations, NbiaClient], lake: Lake, table: Table
) -> None:
    operations, client = control
    gone, *others = mirrored(client, lake)
    operations.hide(gone)
    for _ in range(2):
        write_listing(lake, SERIES, client.api, lambda: Fetched(client.series(NAME)), NAME)
        record_changes(lake, NAME, wait=timedelta(0))
    assert Mirror(client, lake).run(NAME).fetched == 0
    before = tables_of(lake)[IMAGE_SERIES.name, NAME]
    damage(lake, table, DAMAGES["0 bytes"], NAME)
    assert Mirror(client, lake).run(NAME).fetched == 0
    assert statuses(lake) == {gone: WITHDRAWN, **dict.fromkeys(others, COMPLETE)}
    (row,) = (r for r in tables_of(lake)[IMAGE_SERIES.name, NAME] if r["SeriesInstanceUID"] == gone)
    (old,) = (r for r in before if r["SeriesInstanceUID"] == gone)
    assert row == {**old, "Proof": "count+size" if table == IMAGE_SERIES else "md5"}
    expect_intact(lake, 4)
    what = prunable(lake, NAME)
    assert what is not None and prune(lake, what) is not None
    assert statuses(lake)[gone] == WITHDRAWN and lake.count_rows(INSTANCES, NAME) < 62


def test_a_series_of_another_version_is_fetched_again(control: tuple[Operations, NbiaClient], lake: Lake) -> None:
    operations, client = control
    revised, *_ = mirrored(client, lake)
    operations.replace(revised, hidden=False)
    damage(lake, IMAGE_SERIES, DAMAGES["missing"], NAME)
    Mirror(client, lake).update_tables(NAME)
    plan = Mirror(client, lake).plan(NAME)
    assert [w.SeriesInstanceUID for w in plan.todo] == [revised] and statuses(lake)[revised] == PENDING
    assert Mirror(client, lake).run(NAME).fetched == 1
    expect_intact(lake, 4)


def test_a_series_whose_patient_was_revised_moves(control: tuple[Operations, NbiaClient], lake: Lake) -> None:
    operations, client = control
    revised, *_ = mirrored(client, lake)
    operations.edit(revised, PatientID="another")
    damage(lake, IMAGE_SERIES, DAMAGES["missing"], NAME)
    assert Mirror(client, lake).run(NAME).fetched == 1
    assert set(statuses(lake).values()) == {COMPLETE}
    paths = lake.read_table(INSTANCES, NAME)["Path"].to_pylist()
    assert sorted(path for path in lake.sizes("images") if path.endswith(".dcm")) == sorted(paths)


def test_a_directory_of_an_unknown_series_is_left_without_a_receipt(
    control: tuple[Operations, NbiaClient], lake: Lake
) -> None:
    mirrored(control[1], lake)
    path = "images/Lung%20Phantom%20CT/P/1/2/3.dcm"
    lake.put_bytes(path, b"x")
    damage(lake, IMAGE_SERIES, DAMAGES["missing"], NAME)
    rebuilt = rebuild(control[1], lake, NAME)
    assert rebuilt is not None
    assert (rebuilt.complete, rebuilt.files, rebuilt.left) == (4, 62, [path.rpartition("/")[0]])
    assert str(rebuilt) == "4 series with 62 files agree; without a receipt: images/Lung%20Phantom%20CT/P/1/2"
    assert lake.read_bytes(path) == b"x"


def test_images_without_any_table_are_compared_with_the_archive(
    control: tuple[Operations, NbiaClient], lake: Lake
) -> None:
    client = control[1]
    mirrored(client, lake)
    before = tables_of(lake)
    assert proofs(lake) == {"md5+count+size"}
    for path in lake.sizes("tables"):
        lake.remove(path)
    rebuilt = rebuild(client, lake, NAME)
    assert rebuilt is not None and (rebuilt.complete, rebuilt.pending, rebuilt.left) == (4, {}, [])
    assert Mirror(client, lake).run(NAME).fetched == 0
    assert tables_of(lake) == before
    assert proofs(lake) == {"md5"}  # no zip was there to be compared


def test_a_failure_in_the_journal_hides_no_files(control: tuple[Operations, NbiaClient], lake: Lake) -> None:
    client = control[1]
    uid, *_ = mirrored(client, lake)
    (wanted,) = wanted_series(client.series(series_uid=uid))
    journal.record_failure(lake, Receipt(wanted, UNAVAILABLE, 1, reason="for a while"))
    damage(lake, IMAGE_SERIES, DAMAGES["missing"], NAME)
    assert Mirror(client, lake).run(NAME).fetched == 0
    assert set(statuses(lake).values()) == {COMPLETE}


@pytest.mark.parametrize("last", [0, 1], ids=["first table", "second table"])
@pytest.mark.parametrize("table", LOST, ids=lambda table: table.name)
def test_a_crash_in_between_loses_no_finding(
    control: tuple[Operations, NbiaClient], place: Place, table: Table, last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, lake = control[1], Lake(str(place))
    uid, *_ = mirrored(client, lake)
    path = next(p for p in lake.read_table(INSTANCES, NAME)["Path"].to_pylist() if f"/{uid}/" in p)
    lake.put_bytes(path, (lake.read_bytes(path) or b"")[:-1] + b"\xff")
    damage(lake, table, DAMAGES["missing"], NAME)
    calls = itertools.count()

    def crashing(write: Callable[..., None]) -> Callable[..., None]:
        def crash(store: Any, *words: Any) -> None:
            if any(str(word).startswith(TABLES) for word in words) and next(calls) == last:
                raise Crash
            write(store, *words)

        return crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        for kind, name in ((LocalStore, "put_file"), (ObjectStore, "put_file"), (ObjectStore, "put")):
            patch.setattr(kind, name, crashing(getattr(kind, name)))
        rebuild(client, lake, NAME)
    plan = Mirror(client, lake).plan(NAME)
    assert [w.SeriesInstanceUID for w in plan.todo] == [uid]
    assert Mirror(client, lake).run(NAME).fetched == 1
    expect_intact(lake, 4)


def test_damage_in_a_large_index_ends_one_run(
    control: tuple[Operations, NbiaClient], lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations, client = control
    uid, *_ = mirrored(client, lake)
    damage(lake, INSTANCES, DAMAGES["flipped"], NAME)
    assert damage_of(lake, INSTANCES, NAME) is not None
    monkeypatch.setattr(tables, "READ_WHOLE_ROWS", 0)
    assert Mirror(client, lake).run(NAME).fetched == 0  # it is not read
    operations.replace(uid, hidden=False)
    with pytest.raises(DamagedFile):
        Mirror(client, lake).run(NAME)
    assert Mirror(client, lake).run(NAME).fetched == 0  # the one before did that
    expect_intact(lake, 4)


def test_what_the_journal_has_is_newer(control: tuple[Operations, NbiaClient], lake: Lake) -> None:
    client = control[1]
    mirror = Mirror(client, lake)
    mirror.update_tables(NAME)
    (batch,) = mirror.plan(NAME).batches()
    mirror.fetch(batch)
    damage(lake, IMAGE_SERIES, DAMAGES["missing"], NAME)
    assert rebuild(client, lake, NAME) is None  # each of its series is in the journal
    assert mirror.plan(NAME).todo == []
    expect_intact(lake, 4)


def test_pieces_have_the_order_of_the_table(
    control: tuple[Operations, NbiaClient], lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirrored(control[1], lake)
    before = lake.read_table(INSTANCES, NAME)
    monkeypatch.setattr(tables, "PIECE_SERIES", 1)
    damage(lake, INSTANCES, DAMAGES["missing"], NAME)
    assert replace(rebuild(control[1], lake, NAME) or tables.Rebuilt(), pending={}) == tables.Rebuilt(4, 62)
    assert lake.read_table(INSTANCES, NAME).equals(before)
