"""``status`` and ``ls`` say what a lake has; ``get`` downloads without one; ``doctor`` says what is wrong."""

from __future__ import annotations

import json
import shutil
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.cli.main import main
from nbia_pipeline.cli.show import doctor
from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.layout import table_path
from nbia_pipeline.mirror.engine import Mirror
from nbia_pipeline.mirror.plan import Bounds
from nbia_pipeline.schema.tables import IMAGE_SERIES, INSTANCES
from nbia_pipeline.verify.inventory import VerifyResult, record, stored_series
from nbia_pipeline_tests.helpers.archives import TestArchive
from nbia_pipeline_tests.helpers.faults import answer
from nbia_pipeline_tests.helpers.series import expected_files

BREAST, OTHER = "QIN_Breast.v2", "TCGA-DEMO"


@pytest.fixture(scope="module")
def first(demo_archive: str, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A lake with three of the five series of a collection, and with the tables only of another."""
    lake = Lake(str(tmp_path_factory.mktemp("show") / "lake"), fsync=False)
    with NbiaClient(demo_archive, api="v4") as client:
        mirror = Mirror(client, lake, annotations=False)
        mirror.run(BREAST, bounds=Bounds(max_series=3))
        mirror.update_tables(OTHER)
    return lake


@pytest.fixture
def lake(first: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo_archive: str) -> Lake:
    """A copy of it, and the variables that lead to it."""
    shutil.copytree(first.uri, tmp_path / "lake")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NBIA_ARCHIVE", demo_archive)
    monkeypatch.setenv("NBIA_LAKE", str(tmp_path / "lake"))
    monkeypatch.setenv("NBIA_IMAGES", BREAST)
    return Lake(str(tmp_path / "lake"), fsync=False)


def document(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> dict[str, Any]:
    """Return the JSON document that a command prints, and nothing else, on stdout."""
    assert main([*words, "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def receipts_of(lake: Lake) -> Any:
    receipts = lake.read_table(IMAGE_SERIES, BREAST)
    return receipts.filter(pc.equal(receipts["Status"], "complete"))


# --- status


def test_the_status_counts_what_is_wanted_there_and_pending(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "status")
    breast, other = found["collections"][BREAST], found["collections"][OTHER]
    counts = ("listed", "wanted", "complete", "pending", "quarantined", "unavailable", "withdrawn", "damaged")
    assert [breast[name] for name in counts] == [5, 5, 3, 2, 0, 0, 0, 0]
    assert [other[name] for name in counts] == [9, 0, 0, 0, 0, 0, 0, 0]
    assert breast["bytes"] == sum(p.stat().st_size for p in Path(lake.uri, "images").rglob("*.dcm"))
    assert breast["fetched_at"] == pc.max(receipts_of(lake)["FetchedAt"]).as_py().isoformat() + "+00:00"
    assert breast["headers"] == 0
    assert breast["verified_at"] is None and other["fetched_at"] is None
    assert datetime.now(timezone.utc) - datetime.fromisoformat(breast["listed_at"]) < timedelta(days=1)
    assert (found["lake"], found["format"], found["unreadable"]) == (lake.uri, 2, {})
    assert main(["status", "QIN*"]) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith(BREAST)).split()
    assert row[1:7] == ["5", "3", "2", "0", "0", "0"]
    assert OTHER not in out


def test_series_that_cannot_be_fetched_or_are_damaged_are_a_failure_with_their_reasons(
    lake: Lake, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = lake.read_table(IMAGE_SERIES, BREAST).to_pylist()
    pending = [row for row in rows if row["Status"] == "pending"]
    pending[0].update(Status="quarantined", Reason="instance 1 is damaged", FetchedAt=datetime(2026, 1, 1))  # noqa: DTZ001
    lake.write_table(IMAGE_SERIES, IMAGE_SERIES.schema.empty_table().from_pylist(rows, IMAGE_SERIES.schema), BREAST)
    held = stored_series(lake, BREAST)[0]
    record(lake, [VerifyResult(held, 0, 0, "1 of 14 files is missing")])
    assert main(["status"]) == 1
    err = capsys.readouterr().err
    assert f"{BREAST}: series {pending[0]['SeriesInstanceUID']} is quarantined: instance 1 is damaged" in err
    assert f"{BREAST}: 1 series are damaged: `nbia-pipeline verify --damaged --repair` repairs them" in err
    one = document(capsys, "status", BREAST, code=1)["collections"][BREAST]
    assert [one[name] for name in ("complete", "pending", "quarantined", "damaged")] == [3, 1, 1, 1]
    assert one["verified_at"] is not None


def test_a_table_that_cannot_be_read_costs_the_others_nothing(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    Path(lake.uri, table_path("image_series", BREAST)).write_bytes(b"PAR1 and no more")
    found = document(capsys, "status", code=1)
    assert list(found["collections"]) == [OTHER]
    assert "image_series" in found["unreadable"][BREAST]


# --- ls


def test_the_levels_of_a_lake_are_listed_one_by_one(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    receipts = receipts_of(lake).to_pylist()
    size = sum(r["Bytes"] for r in receipts)
    breast, other = document(capsys, "ls")["collections"]
    assert (breast["series"], breast["series_listed"], breast["bytes"]) == (3, 5, size)
    assert breast["files"] == lake.count_rows(INSTANCES, BREAST) == sum(r["ImageCount"] for r in receipts)
    assert (other["collection"], other["patients_listed"], other["series"], other["files"]) == (OTHER, 3, 0, 0)
    patients = document(capsys, "ls", BREAST)["patients"]
    assert [p["patient"] for p in patients] == sorted({r["PatientID"] for r in receipts})
    assert (sum(p["series"] for p in patients), sum(p["bytes"] for p in patients)) == (3, size)
    of_patient = [r for r in receipts if r["PatientID"] == patients[0]["patient"]]
    series = document(capsys, "ls", BREAST, patients[0]["patient"])["series"]
    assert {s["series"] for s in series} == {r["SeriesInstanceUID"] for r in of_patient}
    assert {s["modality"] for s in series} <= {"MR", "SEG"} and all(s["date"] for s in series)
    one = series[0]
    assert document(capsys, "ls", BREAST, patients[0]["patient"], one["study"])["series"][0]["study"] == one["study"]
    files = document(capsys, "ls", BREAST, patients[0]["patient"], one["series"])["files"]
    assert {lake.url(file["path"]): file["bytes"] for file in files} == {
        str(path): path.stat().st_size for path in Path(lake.uri, one["path"]).iterdir()
    }
    assert main(["ls", BREAST, patients[0]["patient"], one["series"]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == [file["path"] for file in files], "no path is cut"


@pytest.mark.usefixtures("lake")
def test_a_name_that_the_lake_does_not_have_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["status", "QIN"], ["ls", "QIN_Breast"], ["ls", BREAST, "QIN"], ["ls", BREAST, "QIN-BR-01", "1.2"]):
        assert main(words) == 2, words
    err = capsys.readouterr().err
    assert f"the lake has no collection 'QIN_Breast': did you mean {BREAST}?" in err
    for command in ("status", "ls"):
        assert main([command, "--lake", "nowhere"]) == 2
    assert "there is no lake in" in capsys.readouterr().err


# --- get


def test_series_are_downloaded_without_a_lake_and_never_twice(
    archive: TestArchive, demo: Catalog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with archive.client() as client:
        uids = client.series(BREAST)["SeriesInstanceUID"].to_pylist()[:2]
    words = ["get", "--archive", archive.url, "--to", str(tmp_path / "to")]
    (tmp_path / "list.tcia").write_text(f"{uids[1]}\n")
    found = document(capsys, *words, "--series", uids[0], "--manifest", str(tmp_path / "list.tcia"))
    assert found["fetched"] == {uid: str(tmp_path / "to" / uid) for uid in uids}
    for uid in uids:
        assert {p.name: p.read_bytes() for p in (tmp_path / "to" / uid).iterdir()} == expected_files(demo, uid)
    assert found["bytes"] == sum(p.stat().st_size for p in (tmp_path / "to").rglob("*.dcm"))
    archive.faults.traffic.reset()
    again = document(capsys, *words, "--series", uids[0])
    assert (again["fetched"], again["already_there"], archive.faults.seen) == ({}, [uids[0]], [])
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["to"], "no lake, no records of Dagster"


def test_one_series_that_fails_is_named_and_costs_the_others_nothing(
    archive: TestArchive, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with archive.client() as client:
        uids = client.series(BREAST)["SeriesInstanceUID"].to_pylist()[:2]
    words = ["get", "--archive", archive.url, "--to", str(tmp_path / "to"), "--series", uids[0]]
    assert main([*words, "--series", "1.2.3"]) == 1
    printed = capsys.readouterr()
    assert "1 series fetched and verified" in printed.out
    assert "series 1.2.3: the archive does not list it: check the UID, and what the account may see" in printed.err
    archive.faults.inject("getImageWithMD5Hash", answer(400))
    assert main([*words, "--series", uids[1]]) == 1
    assert f"series {uids[1]}: unavailable: " in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "to").iterdir()] == [uids[0]]


def test_nothing_begins_where_no_series_is_known_or_named(
    archive: TestArchive, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["get", "--archive", archive.url, "--to", str(tmp_path / "to")]
    assert main([*words, "--series", "1.2.3"]) == 2
    assert main(words) == 2
    assert "name series by --series or --manifest" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# --- doctor


def states(found: dict[str, Any]) -> dict[str, str]:
    return {check["what"]: check["state"] for check in found["checks"]}


def test_a_doctor_finds_nothing_wrong_where_nothing_is(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(Path(lake.uri).rglob("*"))
    found = document(capsys, "doctor")
    assert set(states(found).values()) == {"ok"}, [c for c in found["checks"] if c["state"] != "ok"]
    assert {"settings", "versions", "archive", "clock", "account", "download", "image digest", "lake", "disk"} <= set(
        states(found)
    )
    assert sorted(Path(lake.uri).rglob("*")) == before
    assert main(["doctor", "-q"]) == 0
    printed = capsys.readouterr()
    assert printed.out + printed.err == ""


def test_a_call_that_the_archive_lacks_is_told_from_one_that_is_needed(
    archive: TestArchive, lake: Lake, capsys: pytest.CaptureFixture[str]
) -> None:
    archive.faults.inject("getSeriesSize", answer(500))
    archive.faults.inject("getImageWithMD5Hash", answer(500))
    found = states(document(capsys, "doctor", "--archive", archive.url, code=1))
    assert (found["series size"], found["download"], found["single image"]) == ("warning", "failed", "ok")


@pytest.mark.parametrize("wrong", ["address", "account"])
def test_an_archive_that_does_not_answer_or_refuses_is_one_line_and_the_rest_is_checked(
    wrong: str, lake: Lake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if wrong == "address":
        monkeypatch.setenv("NBIA_ARCHIVE", "http://127.0.0.1:9/nbia-api")
    else:
        monkeypatch.setenv("NBIA_USERNAME", "somebody")
        monkeypatch.setenv("NBIA_PASSWORD", "not-for-anybody")
    assert main(["doctor"]) == 1
    printed = capsys.readouterr()
    assert "not-for-anybody" not in printed.out + printed.err
    failed = [line for line in printed.out.splitlines() if line.startswith("failed")]
    what = {"address": "archive", "account": "account"}[wrong]
    assert len(failed) == 1 and failed[0].split()[1] == what
    assert {"address": "NBIA_ARCHIVE", "account": "NBIA_USERNAME, NBIA_PASSWORD"}[wrong] in failed[0]
    assert "\nok      lake " in printed.out and "\nok      disk " in printed.out


def test_a_clock_that_is_wrong_and_a_lake_that_cannot_be_written_are_told(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = datetime(2026, 5, 4, 12, 0, tzinfo=timezone.utc)
    told = doctor._of_clock("Mon, 04 May 2026 11:50:00 GMT", now)
    assert (told.state, told.found) == ("warning", "10 min 0 s after that of the archive")
    assert doctor._of_clock("Mon, 04 May 2026 12:00:30 GMT", now).state == "ok"
    assert doctor._of_clock(None, now).state == "warning"
    Path(lake.uri, "file").touch()
    monkeypatch.setenv("NBIA_LAKE", f"{lake.uri}/file/lake")
    found = document(capsys, "doctor", code=1)
    assert [name for name, state in states(found).items() if state == "failed"] == ["lake"]
