"""A crash at any point leaves the old state or the new one, and costs no finished series."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.schema.tables import IMAGE_SERIES, INSTANCES
from nbia_pipeline.transfer.receipts import Receipt, note_failure, publish_series, settle, staged_by_journal
from nbia_pipeline.transfer.verify import ProvenInstance
from nbia_pipeline_tests.transfer.test_plan import series_table, wanted

ONE = wanted(1)


class Crash(BaseException):
    """The machine stops here: no handler of errors sees it."""


@pytest.fixture(params=["disk", "object store"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    return Lake(str(tmp_path) if request.param == "disk" else f"memory://receipts-{tmp_path.name}")


def receipt(size: int = 5, n: int = 1) -> Receipt:
    return Receipt(wanted(n), "complete", 1, [ProvenInstance(f"9.{n}", "1.2.840", 1, size, f"{size:032x}")])


def publish(lake: Lake, one: Receipt) -> None:
    with lake.workspace() as work:
        _stage(work, one)
        publish_series(lake, one, work / "files")


def _stage(work: Path, one: Receipt) -> None:
    (work / "files").mkdir()
    for i in one.instances:
        (work / "files" / f"{i.SOPInstanceUID}.dcm").write_bytes(b"x" * i.Size)


def held(lake: Lake) -> dict[str, int]:
    return {path: len(content) for path, content in lake.read_files(receipt().path).items()}


def test_receipts_and_instances_follow_what_was_published(lake: Lake) -> None:
    publish(lake, receipt())
    table = settle(lake, "A", series_table([ONE, wanted(2)]))
    assert table.select(["SeriesInstanceUID", "Status", "Bytes"]).to_pylist() == [
        {"SeriesInstanceUID": "1.0001", "Status": "complete", "Bytes": 5},
        {"SeriesInstanceUID": "1.0002", "Status": "pending", "Bytes": None},
    ]
    assert lake.read_table(IMAGE_SERIES, "A").equals(table)
    (instance,) = lake.read_table(INSTANCES, "A").to_pylist()
    assert instance["Path"] == "images/A/P/1/1.0001/9.1.dcm"
    assert held(lake) == {instance["Path"]: instance["Size"]}


def test_settling_twice_changes_nothing(lake: Lake) -> None:
    publish(lake, receipt())
    first = settle(lake, "A", series_table([ONE]))
    assert settle(lake, "A", series_table([ONE])).equals(first)
    assert lake.read_table(INSTANCES, "A").num_rows == 1


def test_a_newer_version_takes_the_place_of_the_older_one(lake: Lake) -> None:
    publish(lake, receipt(5))
    settle(lake, "A", series_table([ONE]))
    publish(lake, receipt(7))
    table = settle(lake, "A", series_table([ONE]))
    assert table["Bytes"].to_pylist() == [7]
    assert lake.read_table(INSTANCES, "A")["Size"].to_pylist() == [7]
    assert list(held(lake).values()) == [7]


def test_a_failed_refresh_keeps_the_whole_series_that_is_there(lake: Lake) -> None:
    publish(lake, receipt(5))
    settle(lake, "A", series_table([ONE]))
    note_failure(lake, Receipt(replace(ONE, FileSize=200), "quarantined", 3, reason="short"))
    table = settle(lake, "A", series_table([replace(ONE, FileSize=200)]))
    assert table.select(["Status", "Bytes", "Reason"]).to_pylist() == [
        {"Status": "complete", "Bytes": 5, "Reason": "a newer version could not be fetched: short"}
    ]


def test_a_failure_is_kept_with_its_reason_until_it_is_mended(lake: Lake) -> None:
    note_failure(lake, Receipt(ONE, "quarantined", 3, reason="short by one"))
    assert settle(lake, "A", series_table([ONE]))["Reason"].to_pylist() == ["short by one"]
    publish(lake, receipt())
    assert settle(lake, "A", series_table([ONE]))["Status"].to_pylist() == ["complete"]


def test_a_series_that_is_no_longer_listed_keeps_its_receipt(lake: Lake) -> None:
    publish(lake, receipt())
    settle(lake, "A", series_table([ONE]))
    assert settle(lake, "A", series_table([wanted(2)]))["Status"].to_pylist() == ["complete", "pending"]


def test_a_move_that_a_crash_prevented_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = Lake(str(tmp_path))
    publish(lake, receipt(5))
    work = tmp_path / ".staging" / "host.1.abc"
    work.mkdir(parents=True)
    _stage(work, receipt(7))

    def crash(self: Lake, staged: Path, path: str) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(Lake, "publish_folder", crash)
        with pytest.raises(Crash):
            publish_series(lake, receipt(7), work / "files")
    assert list(held(lake).values()) == [5]
    assert staged_by_journal(lake) == {"host.1.abc"}
    assert settle(lake, "A", series_table([ONE]))["Bytes"].to_pylist() == [7]
    assert list(held(lake).values()) == [7]
    assert staged_by_journal(lake) == set()


def test_a_crash_between_the_two_renames_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = Lake(str(tmp_path))
    publish(lake, receipt(5))
    settle(lake, "A", series_table([ONE]))
    work = tmp_path / ".staging" / "host.1.abc"
    work.mkdir(parents=True)
    _stage(work, receipt(7))
    rename = Path.rename
    steps: list[Path] = []

    def crash_at_the_second(self: Path, target: Path) -> Path:
        steps.append(self)
        if len(steps) == 2:
            raise Crash
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crash_at_the_second)
        with pytest.raises(Crash):
            publish_series(lake, receipt(7), work / "files")
    assert held(lake) == {}
    assert settle(lake, "A", series_table([ONE]))["Bytes"].to_pylist() == [7]
    assert list(held(lake).values()) == [7]


def test_a_receipt_survives_the_journal() -> None:
    one = Receipt(ONE, "complete", 2, [ProvenInstance("9.1", None, None, 1, "0" * 32)], reason=None)
    assert Receipt.from_json(one.to_json()) == one


def test_an_empty_collection_has_empty_tables(lake: Lake) -> None:
    assert settle(lake, "A", pa.table(series_table([]))).num_rows == 0
    assert lake.collections_of(IMAGE_SERIES) == ["A"]


def test_a_place_that_cannot_be_had_leaves_no_receipt(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    blocked = tmp_path / "images" / "A" / "P"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where a directory shall be")
    with pytest.raises(LakeError):
        publish(lake, receipt())
    assert settle(lake, "A", series_table([ONE]))["Status"].to_pylist() == ["pending"]
    blocked.unlink()
    publish(lake, receipt())
    assert settle(lake, "A", series_table([ONE]))["Status"].to_pylist() == ["complete"]


def test_an_old_version_comes_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = Lake(str(tmp_path))
    publish(lake, receipt(5))
    settle(lake, "A", series_table([ONE]))
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
    assert settle(lake, "A", series_table([ONE]))["Bytes"].to_pylist() == [5]
