"""A lake that version 0.1.0 left is opened, taken over and used.

`data/lake-0.1.0.zip` was made by the code of 0.1.0, from the tiny catalog. Of `Alpha Set` it holds 1.1, whose newer
version could not be fetched, as a sentence states; 1.2, proven by count and size; 2.1, quarantined; 2.2, withdrawn.
Of `beta-set` it holds an entry of the journal, by a run that was killed before it moved the files of 3.1.
"""

# ruff: noqa: DTZ001 - the tables state no zone

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nbia_pipeline import clock
from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.cli.run import run_main_job
from nbia_pipeline.embedded.control.operations import Operations
from nbia_pipeline.embedded.server.app import create_app
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.layout import table_path
from nbia_pipeline.mirror.commit import commit
from nbia_pipeline.mirror.engine import Mirror, preview
from nbia_pipeline.mirror.plan import Bounds
from nbia_pipeline.mirror.series import NEWER, NO_NEWER
from nbia_pipeline.mirror.upgrade import lacks_paths, upgraded
from nbia_pipeline.schema.tables import IMAGE_SERIES, INSTANCES, SERIES
from nbia_pipeline.settings import Settings
from nbia_pipeline_tests.helpers.archives import FAST
from nbia_pipeline_tests.helpers.faults import Faults
from nbia_pipeline_tests.helpers.places import Place, copied, files_below, place_at
from nbia_pipeline_tests.helpers.tiny import dicom, running, tiny_catalog

DATA = Path(__file__).parents[1] / "data" / "lake-0.1.0.zip"
ALPHA, BETA = "Alpha Set", "beta-set"
NOW = datetime(2026, 3, 3, 12)
NEWER_VERSION = {
    "RefreshFailedAt": NOW,
    "NewerImageCount": 4,
    "NewerFileSize": 4242,
    "NewerTimeStamp": datetime(2026, 3, 2, 8),
    "NewerDateReleased": datetime(2020, 1, 1),
}


@pytest.fixture
def lake(tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """The lake of 0.1.0, a day after its last run."""
    monkeypatch.setattr(clock, "utc_now", lambda: NOW)
    shutil.unpack_archive(DATA, tmp_path / "of 0.1.0")
    return copied(tmp_path / "of 0.1.0" / "lake", place / "lake")


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, Faults]]:
    """The archive as it was when 0.1.0 asked it last: its address, and what it is asked."""
    app = create_app(tiny_catalog())
    control: Operations = app.state.archive.control
    for row in control.series():
        uid = row["SeriesInstanceUID"]
        if row["Collection"] in (ALPHA, BETA):
            control.edit([uid], FileSize=sum(len(dicom(uid, f"{uid}.{n}")) for n in (1, 2, 3)))
    control.edit(["1.1"], TimeStamp="2026-03-02T08:00:00", FileSize=4242, ImageCount=4)
    around = Faults(app)
    with running(around) as url:  # type: ignore[arg-type]
        yield url, around


@pytest.fixture
def mirror(served: tuple[str, Faults], lake: Lake) -> Iterator[Mirror]:
    served[1].reset()
    with NbiaClient(served[0], options=FAST) as client:
        yield Mirror(client, lake)


def receipts(lake: Lake, collection: str = ALPHA) -> dict[str, dict[str, Any]]:
    return {row["SeriesInstanceUID"]: row for row in lake.read_table(IMAGE_SERIES, collection).to_pylist()}


def with_the_newer_version(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the receipts with what 0.1.0 did not state in columns: a version, and the folders of the files."""
    return with_paths({**rows, "1.1": {**rows["1.1"], **NEWER_VERSION}})


def with_paths(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    folders = {"1.1": "A-1/1/1.1", "1.2": "A-1/1/1.2", "2.2": "a-2/2/2.2"}
    return {
        uid: {**row, "Path": f"images/Alpha%20Set/{folders[uid]}" if uid in folders else None}
        for uid, row in rows.items()
    }


def asked(served: tuple[str, Faults]) -> Counter[str]:
    return Counter(r.query["SeriesInstanceUID"] for r in served[1].calls("getImageWithMD5Hash"))


def test_the_lake_states_in_a_sentence_what_columns_state_now(lake: Lake) -> None:
    rows = receipts(lake)
    assert {uid: (row["Status"], row["Proof"]) for uid, row in rows.items()} == {
        "1.1": ("complete", "md5"),
        "1.2": ("complete", "count+size"),
        "2.1": ("quarantined", None),
        "2.2": ("withdrawn", "md5"),
    }
    assert {name for row in rows.values() for name in NO_NEWER if row[name] is not None} == set()
    assert commit(lake, ALPHA).to_pylist() == list(with_the_newer_version(rows).values())
    assert receipts(lake) == with_the_newer_version(rows)


def test_what_failed_before_the_upgrade_is_left_out_or_comes_last(lake: Lake) -> None:
    fixed = preview(lake, ALPHA, bounds=Bounds(retry=False))
    assert (fixed.todo, fixed.given_up, fixed.done) == ([], 2, 1)
    series = lake.read_table(SERIES, ALPHA).to_pylist()
    new = {**series[0], "SeriesInstanceUID": "9.9"}
    lake.write_table(SERIES, pa.Table.from_pylist([*series, new], schema=SERIES.schema), ALPHA)
    assert [w.SeriesInstanceUID for w in preview(lake, ALPHA).todo] == ["9.9", "1.1", "2.1"]
    even_newer = [{**row, "FileSize": 4243} if row["SeriesInstanceUID"] == "1.1" else row for row in series]
    lake.write_table(SERIES, pa.Table.from_pylist(even_newer, schema=SERIES.schema), ALPHA)
    assert [w.SeriesInstanceUID for w in preview(lake, ALPHA, bounds=Bounds(retry=False)).todo] == ["1.1"]


def test_a_run_that_retries_nothing_keeps_the_receipts(served: tuple[str, Faults], lake: Lake, mirror: Mirror) -> None:
    before = receipts(lake)
    result = mirror.run(ALPHA, bounds=Bounds(retry=False))
    assert (result.wanted, result.already_there, result.fetched, result.failed) == (3, 1, 0, {})
    assert asked(served) == {}
    assert receipts(lake) == with_the_newer_version(before)


def test_a_run_that_retries_ends_with_the_same_receipts(served: tuple[str, Faults], lake: Lake, mirror: Mirror) -> None:
    before = receipts(lake)
    assert sorted(mirror.run(ALPHA).failed) == ["1.1", "2.1"]
    assert set(asked(served)) == {"1.1", "2.1"}
    after = receipts(lake)
    assert after.pop("2.1") == {**before["2.1"], "FetchedAt": NOW, "Reason": after_reason(lake)}
    expected = with_the_newer_version(before)
    del expected["2.1"]
    expected["1.1"]["Reason"] = expected["1.1"]["Reason"].replace("zip holds", "zip contains")  # worded anew
    assert after == expected
    assert lake.read_table(INSTANCES, ALPHA).num_rows == 9


def after_reason(lake: Lake) -> Any:
    reason = receipts(lake)["2.1"]["Reason"]
    assert reason.startswith("instance 2.1.2 is not in the zip")
    return reason


@pytest.mark.disk("entries of the journal that name a staged directory")
def test_an_entry_of_the_journal_is_taken_over(served: tuple[str, Faults], lake: Lake, mirror: Mirror) -> None:
    staged = list(Path(lake.uri).glob(".staging/*/files/*.dcm"))
    assert len(staged) == 3
    result = mirror.run(BETA)
    assert (result.already_there, result.fetched) == (1, 0)
    assert asked(served) == {}
    (row,) = receipts(lake, BETA).values()
    assert (row["Status"], row["Proof"], row["Healed"], row["FetchedAt"]) == (
        "complete",
        "md5",
        0,
        datetime(2026, 3, 2, 12),
    )
    for instance in lake.read_table(INSTANCES, BETA).to_pylist():
        content = lake.read_bytes(instance["Path"]) or b""
        assert content == dicom("3.1", instance["SOPInstanceUID"])
        assert hashlib.md5(content).hexdigest() == instance["MD5"]
    left = [p for p in files_below(place_at(lake.uri, ".staging")) if "earlier" not in p.parts]
    assert [p for p in left if p.suffix != ".lock"] == []


@pytest.mark.disk("entries of the journal that name a staged directory")
def test_the_main_job_runs_on_the_lake_and_ends_with_the_same_receipts(
    served: tuple[str, Faults], lake: Lake, tmp_path: Path
) -> None:
    before = receipts(lake)
    settings = Settings(archive=served[0], lake=lake.uri, collections=(ALPHA, BETA), images=(ALPHA, BETA), headers=())
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        outcome = run_main_job(settings, instance, images={"retry": False})
    assert outcome.failures == []
    assert receipts(lake) == with_the_newer_version(before)
    assert [row["Status"] for row in receipts(lake, BETA).values()] == ["complete"]
    assert (outcome.fetched["fetched_series"], outcome.fetched["skipped_series"]) == (0, 2)


def test_the_sentence_is_read_once(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    first = commit(lake, ALPHA)
    monkeypatch.setattr(clock, "utc_now", lambda: NOW + timedelta(days=9))
    assert upgraded(first).equals(first)
    assert commit(lake, ALPHA).equals(first)


def test_a_table_without_the_new_columns_gets_them_though_nothing_changed(lake: Lake) -> None:
    path = table_path("image_series", ALPHA)
    commit(lake, ALPHA)
    as_of_0_1 = (
        pq.ParquetFile(pa.BufferReader(lake.read_bytes(path))).read().drop_columns([*NO_NEWER, "Path"]).slice(1, 1)
    )
    sink = pa.BufferOutputStream()
    pq.write_table(as_of_0_1, sink)
    lake.put_bytes(path, sink.getvalue())
    lake.write_table(SERIES, lake.read_table(SERIES, ALPHA).slice(1, 1), ALPHA)
    assert lacks_paths(lake, ALPHA, lake.read_file(IMAGE_SERIES, ALPHA))
    before = receipts(lake)
    commit(lake, ALPHA)
    assert not lacks_paths(lake, ALPHA, lake.read_file(IMAGE_SERIES, ALPHA))
    assert receipts(lake) == with_paths(before)
    commit(lake, BETA)
    files = f"{lake.uri}/tables/image_series/*/*.parquet"
    rows = duckdb.execute(f"SELECT Collection, RefreshFailedAt FROM '{files}' ORDER BY 1").fetchall()
    assert rows == [(ALPHA, None), (BETA, None)]


@pytest.mark.parametrize("value", ["None", "2026-03-02 08:00:00.000125"])
def test_every_fingerprint_of_0_1_0_is_read(lake: Lake, value: str) -> None:
    row = receipts(lake)["1.1"]
    row["Reason"] = (
        f"the newer version (None images, 5 bytes, submitted {value}, released None) could not be fetched: x"
    )
    (found,) = upgraded(pa.Table.from_pylist([row], schema=IMAGE_SERIES.schema)).to_pylist()
    submitted = None if value == "None" else datetime(2026, 3, 2, 8, 0, 0, 125)
    assert [found[name] for name in NEWER] == [None, 5, submitted, None]
    assert found["RefreshFailedAt"] == NOW
