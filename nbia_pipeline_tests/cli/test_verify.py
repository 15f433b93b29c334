"""``nbia-pipeline verify`` from the outside: what it prints, its exit codes, and that it mends."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import duckdb
import pytest

from nbia_pipeline.archive import ArchiveError, NbiaClient
from nbia_pipeline.cli import main
from nbia_pipeline.embedded.pytest_plugin import NbiaArchive
from nbia_pipeline.lake import Lake
from nbia_pipeline.mirror.commit import commit
from nbia_pipeline.mirror.download import fetch_batch
from nbia_pipeline.mirror.series import wanted_series
from nbia_pipeline.schema.tables import IMAGE_SERIES, SERIES
from nbia_pipeline.verify.inventory import VerifyResult, stored_series
from nbia_pipeline.verify.refetch import refetch
from nbia_pipeline_tests.helpers.archives import FAST, TestArchive
from nbia_pipeline_tests.helpers.faults import answer
from nbia_pipeline_tests.helpers.places import Place

pytestmark = pytest.mark.slow

COLLECTIONS = ("Lung Phantom CT", "QIN_Breast.v2")
SERIES_COUNT = 9


@pytest.fixture
def lake(archive: TestArchive, place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lake]:
    """A lake with two collections, and the variables that lead to it."""
    lake = Lake(str(place / "lake"))
    with archive.client() as client:
        for name in COLLECTIONS:
            mirror(client, lake, name)
    archive.faults.reset()
    monkeypatch.setenv("NBIA_LAKE", lake.uri)
    monkeypatch.setenv("NBIA_ARCHIVE", archive.url)
    yield lake


def mirror(client: NbiaClient, lake: Lake, collection: str) -> None:
    series = client.series(collection)
    lake.write_table(SERIES, series, collection)
    fetch_batch(client, lake, wanted_series(series))
    commit(lake, collection, series)


def verify(*words: str) -> int:
    return main.main(["verify", *words])


def damage(lake: Lake, collection: str = COLLECTIONS[0]) -> str:
    """Lose a file of a series; returns the UID of the series."""
    held = min(stored_series(lake, collection), key=lambda h: h.uid)
    lake.remove(min(lake.sizes(held.path)))
    return held.uid


def verified(lake: Lake) -> int:
    counted = duckdb.execute(f"SELECT count(*) FROM '{lake.uri}/tables/verifications/*/*.parquet'").fetchall()
    return int(counted[0][0])


def test_a_good_lake_is_read_without_asking_the_archive(
    archive: TestArchive, lake: Lake, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify() == 0
    out, err = capsys.readouterr()
    assert f"{lake.uri}: 9 series, 5.0 MB, in 2 collections to read" in out
    assert re.search(r"read 9 of 9 series, 147 files, 5\.0 MB in \d+\.\d s \(.*B/s\), 0 damaged", out)
    assert err == ""
    assert verified(lake) == SERIES_COUNT
    assert archive.faults.seen == []


def test_damage_is_named_with_the_command_that_mends_it(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    uid = damage(lake)
    assert verify("--all") == 1
    out, err = capsys.readouterr()
    assert "1 damaged" in out
    assert re.search(rf"nbia-pipeline: Lung Phantom CT: series {re.escape(uid)}, of \d+ files: missing [0-9.]+dcm", err)
    assert out.splitlines()[-1] == "to repair it: nbia-pipeline verify --damaged --repair"


def test_that_command_mends_it(archive: TestArchive, lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    uid = damage(lake)
    assert verify() == 1
    capsys.readouterr()
    assert verify("--damaged", "--mend") == 0
    out, _ = capsys.readouterr()
    assert "1 series" in out and f"Lung Phantom CT: series {uid} is complete" in out
    assert "repaired 1 of 1 damaged series" in out
    assert archive.faults.count("getImageWithMD5Hash") == 1
    assert verify() == 0
    assert verify("--damaged") == 0
    assert "0 series" in capsys.readouterr()[0]


def test_what_cannot_be_mended_is_said(archive: TestArchive, lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    uid = damage(lake)
    archive.faults.inject("getImageWithMD5Hash", answer(400, b"The user has not been granted the access"))
    assert verify("--mend") == 1
    out, err = capsys.readouterr()
    assert "repaired 0 of 1 damaged series" in out
    assert f"series {uid} could not be repaired, unavailable: " in err
    assert "unavailable" in lake.read_table(IMAGE_SERIES, COLLECTIONS[0])["Status"].to_pylist()


def test_an_archive_that_is_away_fails_the_mending_with_a_sentence(
    archive: TestArchive, lake: Lake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(lake)
    monkeypatch.setenv("NBIA_ARCHIVE", archive.url.replace("/nbia-api", "/elsewhere/nbia-api"))
    assert verify("--mend") == 1
    assert "NBIA_ARCHIVE" in capsys.readouterr()[1]


def test_a_series_that_the_archive_replaced_without_a_sign_is_found_and_fetched(
    fresh_nbia_archive: NbiaArchive,
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lake = Lake(str(place / "lake"))
    with NbiaClient(fresh_nbia_archive.url, options=FAST) as client:
        mirror(client, lake, COLLECTIONS[0])
    monkeypatch.setenv("NBIA_LAKE", lake.uri)
    monkeypatch.setenv("NBIA_ARCHIVE", fresh_nbia_archive.url)
    held = min(stored_series(lake, COLLECTIONS[0]), key=lambda h: h.uid)
    assert verify("--ask-archive") == 0
    fresh_nbia_archive.control.replace(held.uid, hidden=False)
    assert verify() == 0
    assert verify("--ask-archive") == 1
    out, err = capsys.readouterr()
    assert re.search(
        rf"{re.escape(held.uid)}, outdated: the archive .* digest is [0-9a-f]+, the lake's is {held.digest}", err
    )
    assert out.splitlines()[-1] == "to repair it: nbia-pipeline verify --ask-archive --repair"
    assert verify("--ask-archive", "--mend") == 0
    assert "repaired 1 of 1 damaged series" in capsys.readouterr()[0]
    assert verify("--ask-archive") == 0


def test_what_is_outdated_stays_complete_if_it_cannot_be_fetched(archive: TestArchive, lake: Lake) -> None:
    held = max(stored_series(lake, COLLECTIONS[0]), key=lambda h: h.uid)
    outdated = VerifyResult(held, 1, 1, "outdated", outdated=True)
    archive.faults.inject("getImageWithMD5Hash", answer(400, b"The user has not been granted the access"))
    with archive.client() as client:
        assert list(refetch(client, lake, [outdated]).failures) == [held.uid]
        assert set(lake.read_table(IMAGE_SERIES, COLLECTIONS[0])["Status"].to_pylist()) == {"complete"}
        assert refetch(client, lake, [outdated]).uids == {COLLECTIONS[0]: [held.uid]}


def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let twenty minutes pass between two looks at the clock."""
    minutes = itertools.count(step=20)
    start = datetime(2999, 1, 1)  # noqa: DTZ001 - the tables state no zone
    monkeypatch.setattr("nbia_pipeline.clock.utc_now", lambda: start + timedelta(minutes=next(minutes)))


def test_the_time_is_up_and_the_next_call_goes_on(
    lake: Lake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticking(monkeypatch)
    assert verify("--for", "1h30m") == 3
    first = verified(lake)
    assert 0 < first < SERIES_COUNT
    assert f"time is up: read {first} of 9 series" in capsys.readouterr()[0]
    assert verify("--for", "1h30m") == 3
    assert verified(lake) == min(2 * first, SERIES_COUNT)
    assert verify("--for", "999h") == 0
    assert verified(lake) == SERIES_COUNT


def test_damage_counts_more_than_the_time(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    damage(lake)
    assert verify() == 1
    ticking(monkeypatch)
    assert verify("--for", "1h30m") == 1


def test_a_sample_can_be_repeated(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify("--sample", "2") == 0
    out, _ = capsys.readouterr()
    found = re.search(r"2 series, (.*), in . collections? to read, a sample with --seed (\d+)", out)
    assert found and "read 2 of 2 series" in out
    assert verify("--sample", "2", "--seed", found[2]) == 0
    assert f"2 series, {found[1]}," in capsys.readouterr()[0]
    assert verified(lake) == 2


def test_collections_are_chosen_by_name_or_glob(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    damage(lake, COLLECTIONS[0])
    assert verify("QIN*") == 0
    assert "read 5 of 5 series" in capsys.readouterr()[0]
    assert verify("QIN*", COLLECTIONS[0]) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["QIN_Brest.v2"], "the lake has no images of 'QIN_Brest.v2': did you mean QIN_Breast.v2?"),
        (["X*"], "the lake has no images of 'X*': it has images of Lung Phantom CT, QIN_Breast.v2"),
        (["--seed", "1"], "--seed needs --sample"),
        (["--for", "soon"], "'soon' is not a duration such as 30m"),
        (["--for", "0m"], "'0m' is not a duration such as 30m"),
        (["--for", "99999999999h"], "'99999999999h' is not a duration such as 30m"),
        (["--sample", "0"], "'0' is not a number above 0"),
        (["--sample", "2", "--all"], "--all and --sample cannot be combined"),
    ],
)
def test_a_wrong_call_is_told_from_damage(
    lake: Lake, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(*words) == 2
    assert sentence in capsys.readouterr()[1]


def test_progress_comes_at_a_human_pace(
    lake: Lake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbia_pipeline.cli.verify.PROGRESS_SECONDS", 0.0)
    assert verify() == 0
    lines = capsys.readouterr()[0].splitlines()
    assert re.match(r"  9 of 9 series, 5\.0 MB at .*B/s, about 0:00:00 left", lines[-2])
    monkeypatch.undo()


@pytest.mark.parametrize("command", ["verify", "prune"])
def test_a_lake_that_is_not_there_is_not_taken_for_a_good_one(
    command: str, tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NBIA_LAKE", str(place / "none"))
    assert main.main([command]) == 2
    assert "nbia-pipeline: there is no lake in " in capsys.readouterr()[1]
    assert list(tmp_path.iterdir()) == []


def test_what_was_read_is_one_json_document(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    uid = damage(lake)
    capsys.readouterr()
    assert verify("--json") == 1
    found = json.loads(capsys.readouterr()[0])
    assert (found["wanted"], found["checked"], found["stopped"], found["damaged_tables"]) == (9, 9, False, [])
    assert [(d["collection"], d["series"]) for d in found["damaged"]] == [(COLLECTIONS[0], uid)]
    assert "missing" in found["damaged"][0]["finding"]


@pytest.mark.slow
def test_the_shell_sees_the_exit_code(lake: Lake) -> None:
    damage(lake)
    done = subprocess.run([sys.executable, "-m", "nbia_pipeline", "verify"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "1 damaged" in done.stdout and "missing" in done.stderr


def test_a_repair_that_was_stopped_is_not_forgotten(
    archive: TestArchive, lake: Lake, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = VerifyResult(stored_series(lake, COLLECTIONS[0])[0], 0, 0, "missing 1.dcm")
    archive.faults.inject("getImageWithMD5Hash", answer(503), times=50)
    with archive.client() as client, pytest.raises(ArchiveError):
        refetch(client, lake, [damaged])
    archive.faults.reset()
    assert verify() == 1
    assert "1 series that were found damaged are not fetched again yet: `nbia-pipeline run`" in capsys.readouterr()[1]
    with archive.client() as client:
        mirror(client, lake, COLLECTIONS[0])
    assert verify() == 0
