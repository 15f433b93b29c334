"""A crash at any point leaves the old state or the new one, and costs no finished series."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nbia_pipeline.changes.present import present_series
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.lake.parquet import conform
from nbia_pipeline.lake.table_file import TableFile
from nbia_pipeline.mirror.commit import (
    NOT_REFRESHED,
    already_there,
    carry_over,
    commit,
    commit_journal,
    current_receipts,
)
from nbia_pipeline.mirror.journal import (
    has_failed,
    mark_failed,
    record_failure,
    staged_by_journal,
)
from nbia_pipeline.mirror.plan import make_plan
from nbia_pipeline.mirror.receipt import Receipt
from nbia_pipeline.mirror.series import NEWER, refresh_failed
from nbia_pipeline.mirror.unpack import VerifiedInstance
from nbia_pipeline.schema import Table
from nbia_pipeline.schema.arrow import with_column
from nbia_pipeline.schema.tables import IMAGE_SERIES, INSTANCES, SERIES, SERIES_CHANGES, SERIES_SEEN
from nbia_pipeline_tests.helpers.places import WHERE, Place, lake_in
from nbia_pipeline_tests.helpers.series import (
    crash_before_the_move,
    held,
    publish,
    receipt,
    series_table,
    wanted,
)

ONE = wanted(1)


@pytest.fixture(params=WHERE)
def lake(request: pytest.FixtureRequest, place: Place) -> Lake:
    return lake_in(place, request.param)


def test_receipts_and_instances_follow_what_was_published(lake: Lake) -> None:
    publish(lake, receipt())
    table = commit(lake, "A", series_table([ONE, wanted(2)]))
    assert table.select(["SeriesInstanceUID", "Status", "Bytes"]).to_pylist() == [
        {"SeriesInstanceUID": "1.0001", "Status": "complete", "Bytes": 5},
        {"SeriesInstanceUID": "1.0002", "Status": "pending", "Bytes": None},
    ]
    assert lake.read_table(IMAGE_SERIES, "A").equals(table)
    (instance,) = lake.read_table(INSTANCES, "A").to_pylist()
    assert instance["Path"] == "images/A/P/1/1.0001/9.1.dcm"
    assert held(lake) == {instance["Path"]: instance["Size"]}


@pytest.mark.parametrize("name", [".DS_Store", "._1.0001.json", ".nfs0001.json", "1.0001.json~"])
def test_a_file_of_others_in_the_journal_is_no_entry(lake: Lake, name: str) -> None:
    publish(lake, receipt())
    for folder in ("A/", ""):
        lake.put_bytes(f".staging/journal/{folder}{name}", b"\0\5\x16\7 Mac OS X")
    table = commit(lake, "A", series_table([ONE]))
    assert table["Status"].to_pylist() == ["complete"]
    assert staged_by_journal(lake) == set()
    assert name in lake.names_in(".staging/journal/A")


def test_committing_twice_changes_nothing(lake: Lake) -> None:
    publish(lake, receipt())
    first = commit(lake, "A", series_table([ONE]))
    assert commit(lake, "A", series_table([ONE])).equals(first)
    assert lake.read_table(INSTANCES, "A").num_rows == 1


def test_a_newer_version_takes_the_place_of_the_older_one(lake: Lake) -> None:
    publish(lake, receipt(5))
    commit(lake, "A", series_table([ONE]))
    publish(lake, receipt(7))
    table = commit(lake, "A", series_table([ONE]))
    assert table["Bytes"].to_pylist() == [7]
    assert lake.read_table(INSTANCES, "A")["Size"].to_pylist() == [7]
    assert list(held(lake).values()) == [7]


def test_a_failed_refresh_keeps_the_whole_series_that_is_there(lake: Lake) -> None:
    publish(lake, receipt(5))
    commit(lake, "A", series_table([ONE]))
    record_failure(lake, Receipt(replace(ONE, FileSize=200), "quarantined", 3, reason="short"))
    table = commit(lake, "A", series_table([replace(ONE, FileSize=200)]))
    assert table.select(["Status", "Bytes", "Reason"]).to_pylist() == [
        {
            "Status": "complete",
            "Bytes": 5,
            "Reason": "the newer version (3 images, 200 bytes, submitted 2024-01-01 08:30:00, released 2024-01-02 "
            "00:00:00) could not be fetched: short",
        }
    ]
    assert refresh_failed(table).to_pylist() == [True]
    assert table.select(NEWER).to_pylist() == [
        {
            "NewerImageCount": 3,
            "NewerFileSize": 200,
            "NewerTimeStamp": ONE.TimeStamp,
            "NewerDateReleased": ONE.DateReleased,
        }
    ]
    assert table["RefreshFailedAt"].null_count == 0


def test_a_failed_refresh_is_forgotten_when_the_archive_takes_the_newer_version_back(lake: Lake) -> None:
    publish(lake, receipt(5))
    commit(lake, "A", series_table([ONE]))
    record_failure(lake, Receipt(replace(ONE, FileSize=200), "quarantined", 3, reason="short"))
    commit(lake, "A", series_table([replace(ONE, FileSize=200)]))
    table = commit(lake, "A", series_table([ONE]))
    assert table.select(["Status", "Reason"]).to_pylist() == [{"Status": "complete", "Reason": None}]
    assert refresh_failed(table).to_pylist() == [False]
    assert table.select([*NEWER, "RefreshFailedAt"]).to_pylist() == [dict.fromkeys([*NEWER, "RefreshFailedAt"])]


def test_a_failure_is_kept_with_its_reason_until_the_series_is_fetched(lake: Lake) -> None:
    record_failure(lake, Receipt(ONE, "quarantined", 3, reason="short by one"))
    assert commit(lake, "A", series_table([ONE]))["Reason"].to_pylist() == ["short by one"]
    publish(lake, receipt())
    assert commit(lake, "A", series_table([ONE]))["Status"].to_pylist() == ["complete"]


def test_a_series_that_is_no_longer_listed_keeps_its_receipt(lake: Lake) -> None:
    publish(lake, receipt())
    commit(lake, "A", series_table([ONE]))
    assert commit(lake, "A", series_table([wanted(2)]))["Status"].to_pylist() == ["complete", "pending"]


@pytest.mark.disk("entries of the journal that name a staged directory")
def test_a_move_that_a_crash_prevented_is_made_up_for(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    crash_before_the_move(lake, receipt(7))
    assert held(lake) == {}
    assert staged_by_journal(lake) == {"host.1.abc"}
    assert commit(lake, "A", series_table([ONE]))["Bytes"].to_pylist() == [7]
    assert list(held(lake).values()) == [7]
    assert staged_by_journal(lake) == set()


def test_a_receipt_survives_the_journal() -> None:
    one = Receipt(ONE, "complete", 2, [VerifiedInstance("9.1", None, None, 1, "0" * 32)], reason=None)
    assert Receipt.from_json(one.to_json()) == one


def test_an_empty_collection_has_empty_tables(lake: Lake) -> None:
    assert commit(lake, "A", pa.table(series_table([]))).num_rows == 0
    assert lake.collections_of(IMAGE_SERIES) == ["A"]


@pytest.mark.disk("what a file is in the way of")
def test_a_place_that_cannot_be_had_leaves_no_receipt(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    blocked = tmp_path / "images" / "A" / "P"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where a directory must be")
    with pytest.raises(LakeError):
        publish(lake, receipt())
    assert commit(lake, "A", series_table([ONE]))["Status"].to_pylist() == ["pending"]
    blocked.unlink()
    publish(lake, receipt())
    assert commit(lake, "A", series_table([ONE]))["Status"].to_pylist() == ["complete"]


@pytest.mark.disk("moves into a place that is taken")
def test_an_old_version_comes_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = Lake(str(tmp_path))
    publish(lake, receipt(5))
    commit(lake, "A", series_table([ONE]))
    rename = Path.rename

    def refuse_the_new(self: Path, target: Path) -> Path:
        if self.name == "files":
            raise OSError("no room")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse_the_new)
        with pytest.raises(LakeError):
            publish(lake, receipt(7))
    assert list(held(lake).values()) == [5]
    assert commit(lake, "A", series_table([ONE]))["Bytes"].to_pylist() == [5]


def test_a_commit_with_nothing_new_writes_nothing_and_reads_no_instances(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(lake, receipt())
    first = commit(lake, "A", series_table([ONE, wanted(2)]))
    touched: list[str] = []
    for name in ("read_table", "read_file", "read_pieces", "write_table", "write_pieces"):
        was = getattr(Lake, name)

        def noted(self: Lake, table: Table, *args: Any, _was: Any = was, _name: str = name, **more: Any) -> Any:
            touched.append(f"{_name} {table.name}")
            return _was(self, table, *args, **more)

        monkeypatch.setattr(Lake, name, noted)
    assert commit(lake, "A", series_table([wanted(2), ONE])).equals(first)
    assert touched == ["read_file series_seen", "read_file image_series"]


def test_a_commit_and_a_plan_have_one_column_of_all_series_in_memory_at_a_time(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(lake, receipt())
    lake.write_table(SERIES, series_table([ONE]), "A")
    commit(lake, "A")
    lake.write_table(SERIES, series_table([ONE, wanted(2)]), "A")
    to_table, select = TableFile.to_table, TableFile.filter

    def one_column(self: TableFile, columns: list[str] | None = None) -> pa.Table:
        assert columns is not None and len(columns) == 1
        return to_table(self, columns)

    def one_row(self: TableFile, mask: pa.ChunkedArray, columns: list[str] | None = None) -> pa.Table:
        rows = select(self, mask, columns)
        assert rows.num_rows <= 1
        return rows

    monkeypatch.setattr(TableFile, "to_table", one_column)
    monkeypatch.setattr(TableFile, "filter", one_row)
    series = present_series(lake, "A")
    assert make_plan(series, carry_over(lake, "A", series)).todo == [wanted(2)]


def test_what_would_be_committed_can_be_seen_without_a_commit(lake: Lake) -> None:
    publish(lake, receipt())
    seen = current_receipts(lake, "A", series_table([ONE, wanted(2)]))
    assert lake.collections_of(IMAGE_SERIES) == []
    assert commit(lake, "A", series_table([ONE, wanted(2)])).equals(seen)


# --- withdrawn


def statuses(table: pa.Table) -> dict[str, str]:
    return dict(zip(table["SeriesInstanceUID"].to_pylist(), table["Status"].to_pylist(), strict=True))


def withdraw(lake: Lake, *uids: str) -> None:
    """Let the feed of changes believe that these series, and no others, are withdrawn."""
    seen = [{**dict.fromkeys(SERIES_SEEN.schema.names), "SeriesInstanceUID": uid, "Withdrawn": True} for uid in uids]
    lake.write_table(SERIES_SEEN, pa.Table.from_pylist(seen, schema=SERIES_SEEN.schema), "A", may_empty=True)


def test_a_withdrawn_series_keeps_all_but_its_status(lake: Lake) -> None:
    publish(lake, receipt())
    before = commit(lake, "A", series_table([ONE, wanted(2)])).to_pylist()
    withdraw(lake, "1.0001", "7.7")
    table = commit(lake, "A", series_table([wanted(2)]))
    assert table.to_pylist() == [{**before[0], "Status": "withdrawn"}, before[1]]
    assert len(held(lake)) == lake.read_table(INSTANCES, "A").num_rows == 1
    assert commit(lake, "A", series_table([wanted(2)])).equals(table), "it came back by itself"


def test_a_withdrawn_series_that_returns_as_it_was_is_complete_without_a_fetch(lake: Lake) -> None:
    publish(lake, receipt())
    before = commit(lake, "A", series_table([ONE]))
    withdraw(lake, "1.0001")
    gone = commit(lake, "A", series_table([]))
    assert statuses(gone) == {"1.0001": "withdrawn"}
    assert make_plan(series_table([ONE]), gone).todo == []
    # Believed to be withdrawn, and listed all the same: what is listed is there.
    assert commit(lake, "A", series_table([ONE])).equals(before)


def test_a_withdrawn_series_that_returns_with_another_content_is_fetched(lake: Lake) -> None:
    publish(lake, receipt())
    commit(lake, "A", series_table([ONE]))
    withdraw(lake, "1.0001")
    commit(lake, "A", series_table([]))
    revised = series_table([replace(ONE, FileSize=200)])
    assert len(make_plan(revised, commit(lake, "A", revised)).todo) == 1
    assert len(held(lake)) == 1


def test_a_pruned_series_that_returns_is_fetched(lake: Lake) -> None:
    record_failure(lake, Receipt(ONE, "quarantined", 3, reason="short"))
    commit(lake, "A", series_table([ONE]))
    withdraw(lake, "1.0001")
    gone = commit(lake, "A", series_table([]))
    assert gone.select(["Status", "Bytes"]).to_pylist() == [{"Status": "withdrawn", "Bytes": None}]
    assert len(make_plan(series_table([ONE]), gone).todo) == 1
    assert statuses(commit(lake, "A", series_table([ONE]))) == {"1.0001": "pending"}


def reason(lake: Lake, uid: str, *reasons: str | None) -> None:
    """Let the feed say, once or more often, why it is withdrawn."""
    rows = [{"SeriesInstanceUID": uid, "Change": "withdrawn", "Reason": reason} for reason in reasons]
    feed = pa.Table.from_pylist([{**dict.fromkeys(SERIES_CHANGES.schema.names), **row} for row in rows])
    lake.write_table(SERIES_CHANGES, conform(feed, SERIES_CHANGES.schema), "A")


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (["hidden"], "hidden"),
        (["hidden", "deleted"], "deleted"),
        ([None, "hidden"], "hidden"),
        (["hidden", None], None),
    ],
)
def test_why_a_series_is_withdrawn_is_its_reason_until_it_returns(
    lake: Lake, said: list[str | None], kept: str | None
) -> None:
    publish(lake, receipt())
    before = commit(lake, "A", series_table([ONE]))
    reason(lake, "1.0001", *said)
    withdraw(lake, "1.0001")
    gone = commit(lake, "A", series_table([]))
    assert gone.to_pylist() == [{**before.to_pylist()[0], "Status": "withdrawn", "Reason": kept}]
    assert commit(lake, "A", series_table([])).equals(gone)
    assert commit(lake, "A", series_table([ONE])).equals(before)


def test_a_withdrawn_series_that_returns_revised_has_no_outdated_reason(lake: Lake) -> None:
    publish(lake, receipt())
    commit(lake, "A", series_table([ONE]))
    reason(lake, "1.0001", "hidden")
    withdraw(lake, "1.0001")
    commit(lake, "A", series_table([]))
    revised = commit(lake, "A", series_table([replace(ONE, FileSize=200)]))
    assert revised.select(["Status", "Reason"]).to_pylist() == [{"Status": "complete", "Reason": None}]


def test_a_failed_refresh_outlasts_a_withdrawal(lake: Lake) -> None:
    publish(lake, receipt(5))
    newer = replace(ONE, FileSize=200)
    commit(lake, "A", series_table([ONE]))
    record_failure(lake, Receipt(newer, "quarantined", 3, reason="short"))
    commit(lake, "A", series_table([newer]))
    reason(lake, "1.0001", "hidden")
    withdraw(lake, "1.0001")
    assert commit(lake, "A", series_table([]))["Reason"].to_pylist() == ["hidden"]
    back = commit(lake, "A", series_table([newer]))
    assert back["Reason"].to_pylist() == [NOT_REFRESHED]
    assert back["NewerFileSize"].to_pylist() == [200]


def test_the_reason_of_a_pruned_series_stays(lake: Lake) -> None:
    publish(lake, receipt())
    commit(lake, "A", series_table([ONE]))
    withdraw(lake, "1.0001")
    gone = commit(lake, "A", series_table([]))
    lake.write_table(IMAGE_SERIES, with_column(gone, "Reason", pa.array(["pruned"])), "A")
    reason(lake, "1.0001", "hidden")
    assert commit(lake, "A", series_table([]))["Reason"].to_pylist() == ["pruned"]


# --- a batch that is tried again, and one that fails


def test_a_batch_that_is_tried_again_skips_what_it_got(lake: Lake) -> None:
    publish(lake, receipt(n=1))
    commit(lake, "A", series_table([ONE]))
    publish(lake, receipt(n=2))
    record_failure(lake, Receipt(wanted(3), "quarantined", 3, reason="short"))
    assert already_there(lake, [wanted(n) for n in (1, 2, 3, 4)]) == {"1.0001", "1.0002"}
    assert already_there(lake, [replace(wanted(n), FileSize=7) for n in (1, 2)]) == set()


@pytest.mark.disk("entries of the journal that name a staged directory")
def test_a_batch_that_is_tried_again_counts_on_files_that_are_still_staged(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    crash_before_the_move(lake, receipt())
    assert held(lake) == {}
    assert already_there(lake, [ONE]) == {"1.0001"}
    commit(lake, "A", series_table([ONE]))
    assert list(held(lake).values()) == [5]


def test_the_journal_is_newer_than_the_tables(lake: Lake) -> None:
    publish(lake, receipt())
    commit(lake, "A", series_table([ONE]))
    publish(lake, replace(receipt(7), wanted=replace(ONE, FileSize=200)))
    assert already_there(lake, [ONE]) == set()
    assert already_there(lake, [replace(ONE, FileSize=200)]) == {"1.0001"}


def test_a_failed_batch_leaves_a_mark_until_the_next_plan(lake: Lake) -> None:
    assert not has_failed(lake, "A")
    mark_failed(lake, "A")
    publish(lake, receipt())
    commit(lake, "A", series_table([ONE]), clear_mark=False)
    assert has_failed(lake, "A")
    assert not has_failed(lake, "B")
    commit(lake, "A", series_table([ONE]))
    assert not has_failed(lake, "A")


@pytest.mark.parametrize("failed_commits_first", [True, False])
def test_whatever_the_order_all_that_was_fetched_is_in_the_tables(lake: Lake, failed_commits_first: bool) -> None:
    """Two batches, one of which fails: the protocol of `mark_failed`, in both orders."""

    def fail() -> None:
        mark_failed(lake, "A")
        commit_journal(lake, "A")

    def finish() -> None:
        publish(lake, receipt(n=2))
        if has_failed(lake, "A"):
            commit_journal(lake, "A")

    publish(lake, receipt(n=1))
    for step in (fail, finish) if failed_commits_first else (finish, fail):
        step()
    assert statuses(lake.read_table(IMAGE_SERIES, "A")) == {"1.0001": "complete", "1.0002": "complete"}
