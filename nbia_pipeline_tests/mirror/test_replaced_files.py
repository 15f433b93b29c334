"""Files of a series that are replaced: at no moment a complete receipt describes other files than are there."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.local_store import LocalStore
from nbia_pipeline.mirror.commit import already_there, commit
from nbia_pipeline.mirror.journal import BEING_REPLACED, DAMAGED, revoke, sweep
from nbia_pipeline.schema.tables import IMAGE_SERIES, INSTANCES
from nbia_pipeline_tests.helpers.places import WHERE, Place, lake_in
from nbia_pipeline_tests.helpers.series import Crash, held, publish, read_files, receipt, series_table, wanted

ONE = wanted(1)
STAGED = "newer files that wait in the staging area for the commit"


@pytest.fixture(params=WHERE)
def lake(request: pytest.FixtureRequest, place: Place) -> Lake:
    return lake_in(place, request.param)


@pytest.fixture
def replacing(tmp_path: Path) -> Lake:
    """A lake with a newer version of a complete series, which waits for the commit."""
    lake = Lake(str(tmp_path))
    publish(lake, receipt(5))
    commit(lake, "A", series_table([ONE]))
    publish(lake, receipt(7))
    assert list(held(lake).values()) == [5]
    assert lake.read_table(IMAGE_SERIES, "A")["Status"].to_pylist() == ["complete"]
    assert already_there(lake, [ONE]) == {"1.0001"}
    return lake


@pytest.mark.disk(STAGED)
def test_newer_files_wait_for_the_commit_and_are_not_swept(replacing: Lake) -> None:
    assert len(replacing.staged()) == 1 and sweep(replacing) == 0
    assert commit(replacing, "A", series_table([ONE]))["Bytes"].to_pylist() == [7]
    assert list(held(replacing).values()) == [7]
    assert replacing.staged() == []


@pytest.mark.disk(STAGED)
def test_of_two_newer_versions_the_last_is_kept(replacing: Lake) -> None:
    publish(replacing, receipt(9))
    assert len(replacing.staged()) == 1
    assert commit(replacing, "A", series_table([ONE]))["Bytes"].to_pylist() == [9]
    assert list(held(replacing).values()) == [9]


@pytest.mark.disk(STAGED)
@pytest.mark.parametrize("method", ["_moved", "put_file", "remove"])
def test_no_receipt_is_complete_when_a_crash_comes_between(
    replacing: Lake, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """At each step of the commit in turn, until it gets through."""
    original = getattr(LocalStore, method)
    moments = set()
    for last in range(20):
        calls = itertools.count()

        def crash(self: LocalStore, *words: Any, last: int = last, calls: Iterator[int] = calls) -> Any:
            if next(calls) == last:
                raise Crash
            return original(self, *words)

        try:
            with monkeypatch.context() as patch:
                patch.setattr(LocalStore, method, crash)
                commit(replacing, "A", series_table([ONE]))
                break
        except Crash:
            [row] = replacing.read_table(IMAGE_SERIES, "A").to_pylist()
            sizes = list(held(replacing).values())
            moments.add((row["Status"], *sizes))
            indexed = replacing.read_table(INSTANCES, "A")["Size"].to_pylist()
            assert (row["Status"] == "pending") == (row["Path"] is None)
            assert row["Status"] == "pending" or sizes == indexed == [row["Bytes"]]
    assert ("pending",) in moments or method != "_moved", "it crashed between the two renames, too"
    assert list(held(replacing).values()) == [7]
    assert replacing.read_table(IMAGE_SERIES, "A").select(["Status", "Bytes"]).to_pylist() == [
        {"Status": "complete", "Bytes": 7}
    ]


@pytest.mark.parametrize("reason", [BEING_REPLACED, DAMAGED])
def test_files_of_a_revoked_receipt_in_another_directory_are_removed(lake: Lake, reason: str) -> None:
    publish(lake, receipt(5))
    commit(lake, "A", series_table([ONE]))
    revoke(lake, "A", {"1.0001": reason})
    moved = replace(receipt(7), wanted=replace(ONE, PatientID="Q"))
    publish(lake, moved)
    assert commit(lake, "A", series_table([moved.wanted]))["Bytes"].to_pylist() == [7]
    assert held(lake) == {} and len(read_files(lake, moved.path)) == 1


@pytest.mark.disk(STAGED)
def test_newer_files_that_are_gone_are_fetched_again(replacing: Lake, caplog: pytest.LogCaptureFixture) -> None:
    (name,) = replacing.staged()
    replacing.remove_folder(f".staging/{name}")
    table = commit(replacing, "A", series_table([ONE]))
    assert table.select(["Status", "Bytes"]).to_pylist() == [{"Status": "complete", "Bytes": 5}]
    assert list(held(replacing).values()) == [5], "the older ones are still there"
    assert "its files are gone; it is fetched again" in caplog.text


@pytest.mark.disk(STAGED)
def test_older_files_of_the_same_names_and_sizes_are_not_taken_for_the_newer_ones(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    publish(lake, receipt(5))
    commit(lake, "A", series_table([ONE]))
    newer = replace(receipt(5), instances=[replace(i, MD5="1" * 32) for i in receipt(5).instances])
    publish(lake, newer)
    (name,) = lake.staged()
    lake.remove_folder(f".staging/{name}")
    table = commit(lake, "A", series_table([ONE]))
    assert table["Status"].to_pylist() == ["complete"]
    assert table["SeriesMD5"].to_pylist() == [receipt(5).row()["SeriesMD5"]]
