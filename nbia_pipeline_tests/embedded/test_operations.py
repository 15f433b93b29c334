"""What is done to a running archive, as those see it who ask over HTTP."""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pydicom
import pytest

from nbia_pipeline.embedded.catalog.model import CATALOG_SCHEMA, Catalog
from nbia_pipeline.embedded.control.operations import OperationError
from nbia_pipeline.embedded.demo.catalog import demo_catalog
from nbia_pipeline_tests.helpers.archive_client import ArchiveClient
from nbia_pipeline_tests.helpers.tiny import tiny_catalog

pytestmark = pytest.mark.slow

NOW = dt.datetime.fromisoformat("2024-03-05T10:20:30")


@pytest.fixture
def site(make_site: Callable[..., ArchiveClient]) -> ArchiveClient:
    """A tiny archive of one's own, whose clock stands still."""
    site = make_site()
    site.control.now(NOW)
    return site


@pytest.fixture(scope="module")
def demo() -> Catalog:
    return demo_catalog()


@pytest.fixture
def demo_site(make_site: Callable[..., ArchiveClient], demo: Catalog) -> ArchiveClient:
    site = make_site(demo)
    site.control.now(NOW)
    return site


def one(site: ArchiveClient, uid: str) -> dict[str, Any] | None:
    answer = site.get("v2/getSeries", SeriesInstanceUID=uid)
    row: dict[str, Any] | None = answer.json()[0] if answer.content else None
    return row


def updated(site: ArchiveClient, day: str) -> list[str]:
    return site.column("v2/getUpdatedSeries", "SeriesInstanceUID", fromDate=day)


def files(site: ArchiveClient, uid: str) -> dict[str, bytes]:
    """Return the images of a series by SOPInstanceUID, each checked against the digest that goes with it."""
    answer = site.get("v2/getImageWithMD5Hash", SeriesInstanceUID=uid)
    assert answer.status_code == 200, answer.text
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    lines = entries.pop("md5hashes.csv").decode().splitlines()[1:]
    assert dict(line.split(",") for line in lines) == {n: hashlib.md5(d).hexdigest() for n, d in entries.items()}
    return {str(pydicom.dcmread(io.BytesIO(d)).SOPInstanceUID): d for d in entries.values()}


def uid_of(demo: Catalog, modality: str) -> str:
    rows = demo.series.to_pylist()
    among = ("TCGA-DEMO", "HeadNeckMix")
    return next(str(r["SeriesInstanceUID"]) for r in rows if r["Modality"] == modality and r["Collection"] in among)


def test_release_without_a_day_is_today_at_midnight(site: ArchiveClient) -> None:
    assert one(site, "2.2") is None
    site.control.release("2.2")
    row = one(site, "2.2")
    assert row is not None
    assert row["DateReleased"] == "2024-03-05 00:00:00.0"
    # The trap: strictly after the midnight that begins the day.
    assert updated(site, "05/03/2024") == []
    assert updated(site, "04/03/2024") == ["2.2"]


def test_release_with_a_time_of_day(site: ArchiveClient) -> None:
    site.control.release("2.2", "2024-03-05T23:59:00")
    assert updated(site, "05/03/2024") == ["2.2"]


def test_back_dating_moves_nothing_else(site: ArchiveClient) -> None:
    before = one(site, "3.1")
    site.control.back_date("3.1", dt.date(2012, 1, 31))
    assert before is not None
    assert one(site, "3.1") == {**before, "DateReleased": "2012-01-31 00:00:00.0"}
    assert "3.1" not in updated(site, "01/02/2012")


def test_hidden_and_returned(site: ArchiveClient) -> None:
    before = one(site, "1.1")
    site.control.hide(["1.1", "3.1"])
    assert one(site, "1.1") is one(site, "3.1") is None
    assert site.get("v2/getImage", SeriesInstanceUID="1.1").status_code == 400
    assert site.column("v2/getCollectionValues", "Collection") == ["Alpha Set"]
    (row,) = site.post("v2/getSeriesQCInfo", {"seriesId": "1.1"}).json()
    assert row["Visibility"] == "Not Visible"
    assert len(site.column("v2/getSOPInstanceUIDs", "SOPInstanceUID", SeriesInstanceUID="1.1")) == 3
    site.control.show(["1.1", "3.1"])
    assert one(site, "1.1") == before


def test_deleted(site: ArchiveClient) -> None:
    site.control.delete("1.1")
    assert one(site, "1.1") is None
    assert site.post("v2/getSeriesQCInfo", {"seriesId": "1.1"}).content == b""
    assert site.get("v4/getSOPInstanceUIDs", SeriesInstanceUID="1.1").content == b""
    assert site.post("getMD5Hierarchy", {"SeriesInstanceUID": "1.1"}).content == b""
    assert site.get("v2/getSingleImage", SeriesInstanceUID="1.1", SOPInstanceUID="1.1.1").status_code == 500
    site.control.delete("3.1")
    assert site.column("v2/getCollectionValues", "Collection") == ["Alpha Set"]


@pytest.mark.parametrize("count", [1, 2, 30])
def test_deleting_few_or_many_leaves_the_others(demo_site: ArchiveClient, demo: Catalog, count: int) -> None:
    uids = [r["SeriesInstanceUID"] for r in demo_site.control.series()]
    gone = set(uids[::-1][::2][:count] if count < 30 else uids[1:])
    demo_site.control.delete(gone)
    assert [r["SeriesInstanceUID"] for r in demo_site.control.series()] == [u for u in uids if u not in gone]


def test_edited(site: ArchiveClient) -> None:
    before = one(site, "1.1")
    assert before is not None
    site.control.edit("1.1", LicenseName="Other", SeriesDescription=None, SeriesDate="2002-02-03", SeriesNumber=12)
    expected = {**before, "LicenseName": "Other", "SeriesDate": "2002-02-03 00:00:00.0", "SeriesNumber": 12}
    del expected["SeriesDescription"]
    assert one(site, "1.1") == expected
    other = one(site, "1.2")
    assert other is not None
    assert other["LicenseName"].startswith("Creative")


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"Licence": "x"}, "no column Licence"),
        ({"SeriesInstanceUID": "x"}, "cannot be changed"),
        ({"SeriesNumber": "eight"}, "does not fit into the column SeriesNumber"),
        ({"DateReleased": "soon"}, "not a day"),
    ],
)
def test_edits_that_make_no_sense(site: ArchiveClient, columns: dict[str, Any], match: str) -> None:
    with pytest.raises(OperationError, match=match):
        site.control.edit("1.1", **columns)
    assert site.control.events() == []


def test_unknown_series_are_refused_and_nothing_is_done(site: ArchiveClient) -> None:
    with pytest.raises(OperationError, match="there is no series 9"):
        site.control.hide(["1.1", "9"])
    assert one(site, "1.1") is not None


def test_foreign_images_cannot_be_made_anew(site: ArchiveClient) -> None:
    with pytest.raises(OperationError, match="not phantoms"):
        site.control.replace("1.1")


def test_a_catalog_without_images_changes_its_time_only(make_site: Callable[..., ArchiveClient]) -> None:
    catalog = tiny_catalog()
    catalog.images = None
    site = make_site(catalog)
    site.control.now(NOW)
    before = one(site, "1.1")
    site.control.replace("1.1", hidden=False)
    assert before is not None
    assert one(site, "1.1") == {**before, "TimeStamp": "2024-03-05 10:20:30.0"}


@pytest.mark.parametrize("modality", ["CT", "PT", "SEG", "RTDOSE", "SR"])
def test_replaced_contents(demo_site: ArchiveClient, demo: Catalog, modality: str) -> None:
    uid = uid_of(demo, modality)
    row, before = one(demo_site, uid), files(demo_site, uid)
    digest = demo_site.post("getMD5Hierarchy", {"SeriesInstanceUID": uid}).text
    demo_site.control.replace(uid)
    assert one(demo_site, uid) is None
    demo_site.control.show(uid)
    after, changed = files(demo_site, uid), one(demo_site, uid)
    assert set(after) == set(before)
    assert all(after[sop] != before[sop] for sop in before)
    assert row is not None
    assert changed is not None
    assert changed["TimeStamp"] == "2024-03-05 10:20:30.0"
    assert changed["DateReleased"] == row["DateReleased"]
    assert changed["FileSize"] == sum(map(len, after.values()))
    # Of images not even count and size tell; only time and digests do.
    assert (changed["FileSize"] == row["FileSize"]) == (modality in ("CT", "PT"))
    assert demo_site.post("getMD5Hierarchy", {"SeriesInstanceUID": uid}).text != digest
    demo_site.control.reset()
    assert files(demo_site, uid) == before
    assert one(demo_site, uid) == row


def test_replaced_with_fewer_slices(demo_site: ArchiveClient, demo: Catalog) -> None:
    uid = uid_of(demo, "CT")
    before = files(demo_site, uid)
    demo_site.control.replace(uid, hidden=False, slices=5)
    row, after = one(demo_site, uid), files(demo_site, uid)
    assert row is not None
    assert row["ImageCount"] == len(after) == 5
    assert set(after) < set(before)


def test_replaced_twice_within_a_second_has_two_times(make_site: Callable[..., ArchiveClient], demo: Catalog) -> None:
    site, uid = make_site(demo), uid_of(demo, "CT")
    times = []
    for _ in range(3):
        site.control.replace(uid, hidden=False)
        row = one(site, uid)
        times.append(row and row["TimeStamp"])
    assert len(set(times)) == 3


def test_a_new_series(demo_site: ArchiveClient, demo: Catalog) -> None:
    uid = demo_site.control.add_series("TCGA-DEMO", patient="NEW-1", slices=4, SeriesDescription="é, new")
    row, images = one(demo_site, uid), files(demo_site, uid)
    assert row is not None
    assert uid not in demo.series["SeriesInstanceUID"].to_pylist()
    assert row["StudyInstanceUID"] not in demo.series["StudyInstanceUID"].to_pylist()
    assert (row["PatientID"], row["SeriesDescription"], row["ImageCount"]) == ("NEW-1", "é, new", 4)
    assert (row["TimeStamp"], row["DateReleased"]) == ("2024-03-05 10:20:30.0", "2024-03-05 00:00:00.0")
    assert row["FileSize"] == sum(map(len, images.values()))
    assert len(images) == 4
    for data in images.values():
        header = pydicom.dcmread(io.BytesIO(data))
        assert (header.PatientID, header.SeriesInstanceUID) == ("NEW-1", uid)
        assert (header.StudyInstanceUID, header.SeriesDescription) == (row["StudyInstanceUID"], "é, new")
    assert set(images) == set(demo_site.column("v2/getSOPInstanceUIDs", "SOPInstanceUID", SeriesInstanceUID=uid))
    assert updated(demo_site, "04/03/2024") == [uid]
    second = demo_site.control.add_series("TCGA-DEMO", study=row["StudyInstanceUID"], patient="NEW-1")
    assert second != uid
    (count,) = demo_site.column("v2/getPatientStudy", "SeriesCount", StudyInstanceUID=row["StudyInstanceUID"])
    assert count == 2


@pytest.mark.parametrize("modality", ["CT", "MR", "PT", "SEG", "REG", "RTPLAN"])
def test_a_new_series_like_another(demo_site: ArchiveClient, demo: Catalog, modality: str) -> None:
    like = uid_of(demo, modality)
    uid = demo_site.control.add_series("QIN_Breast.v2", like=like)
    row = one(demo_site, uid)
    assert row is not None
    assert (row["Modality"], row["Collection"]) == (modality, "QIN_Breast.v2")
    assert row["ImageCount"] == len(files(demo_site, uid))


def test_a_new_series_that_nobody_has_reviewed(demo_site: ArchiveClient) -> None:
    uid = demo_site.control.add_series("TCGA-DEMO", visible=False)
    assert one(demo_site, uid) is None
    demo_site.control.show(uid)
    row = one(demo_site, uid)
    assert row is not None
    assert "DateReleased" not in row
    assert uid not in updated(demo_site, "01/01/1900")
    demo_site.control.release(uid, "2024-03-06")
    assert updated(demo_site, "05/03/2024") == [uid]


def test_a_new_collection(demo_site: ArchiveClient) -> None:
    demo_site.control.add_collection("New & Fine", "<p>It</p>", "https://doi.org/10.5072/new")
    assert "New & Fine" not in demo_site.column("v2/getCollectionValues", "Collection")
    (told,) = demo_site.get("getCollectionDescriptions", collectionName="New & Fine").json()
    assert (told["description"], told["collectionDescTimestamp"]) == ("<p>It</p>", 1709634030000)
    uid = demo_site.control.add_series("New & Fine")
    assert "New & Fine" in demo_site.column("v2/getCollectionValues", "Collection")
    assert demo_site.column("v2/getSeries", "SeriesInstanceUID", Collection="New & Fine") == [uid]
    demo_site.control.add_collection("New & Fine", restricted=True)
    assert demo_site.get("v2/getSeries", Collection="New & Fine").content == b""
    demo_site.control.add_collection("New & Fine")
    assert demo_site.get("v2/getSeries", Collection="New & Fine").content


def test_a_collection_without_a_description_needs_no_announcement(site: ArchiveClient) -> None:
    uid = site.control.add_series("Brand New", like="1.1")
    assert site.column("v2/getSeries", "SeriesInstanceUID", Collection="brand new") == [uid]
    assert len(files(site, uid)) == 6


def test_a_cart(site: ArchiveClient) -> None:
    site.control.cart("Second", ["3.1", "1.1"])
    assert site.column("v2/getContentsByName", "SeriesInstanceUID", name="second") == ["1.1", "3.1"]


def test_reset_and_events(site: ArchiveClient) -> None:
    everything = site.get("v2/getSeries").content
    site.control.hide("1.1")
    site.control.add_series("Alpha Set", like="1.2")
    site.control.delete("3.1")
    site.control.token_lifetime(5)
    site.control.guide_spellings(True)
    events = site.control.events()
    assert [(e["action"], e["time"]) for e in events] == [("hide", NOW), ("add_series", NOW), ("delete", NOW)]
    assert events[0]["series"] == ["1.1"]
    assert events[0]["columns"] == {"Visibility": 2}
    site.control.reset()
    assert site.get("v2/getSeries").content == everything
    assert site.control.events() == []
    assert site.app.state.archive.tokens.lifetime == 7200
    assert not site.app.state.archive.settings.guide_spellings
    assert site.control.clock() > NOW


def test_the_truth_about_all_series(site: ArchiveClient) -> None:
    rows = site.control.series()
    assert [r["SeriesInstanceUID"] for r in rows] == ["1.1", "1.2", "2.1", "2.2", "5.1", "4.1", "3.1"]
    assert set(rows[0]) == set(CATALOG_SCHEMA.names)
    assert len(site.control.series("Secret")) == 1
    assert site.control.series("secret") == []


def test_tokens(site: ArchiveClient) -> None:
    header = f"Bearer {site.token()}"
    assert site.get("v2/getCollectionValues", header).status_code == 200
    site.control.expire_tokens()
    assert site.get("v2/getCollectionValues", header).status_code == 401
    site.control.token_lifetime(5, refresh=50)
    form = {"grant_type": "password", "username": "nbia_guest"}
    told = site.session.post(f"{site.url}/oauth/token", data=form).json()
    assert (told["expires_in"], told["refresh_expires_in"]) == (5, 50)


def test_a_change_leaves_the_catalog_of_others_alone(demo: Catalog, make_site: Callable[..., ArchiveClient]) -> None:
    first, second, uid = make_site(demo), make_site(demo), uid_of(demo, "CT")
    before = files(second, uid)
    first.control.replace(uid, hidden=False)
    first.control.delete(uid_of(demo, "PT"))
    first.control.add_series("TCGA-DEMO")
    assert files(second, uid) == before
    assert second.get("v2/getSeries").content == make_site(demo).get("v2/getSeries").content
    assert demo.series.num_rows == demo_catalog().series.num_rows


@pytest.mark.slow
def test_kept_answers_about_other_collections_stay(make_site: Callable[..., ArchiveClient]) -> None:
    catalog = tiny_catalog()
    rows = [
        {**row, "SeriesInstanceUID": f"{row['SeriesInstanceUID']}.{n}"}
        for n in range(4000)
        for row in catalog.series.to_pylist()
    ]
    catalog.series = pa.Table.from_pylist(rows, schema=CATALOG_SCHEMA)
    site = make_site(catalog)
    for collection in ("Alpha Set", "beta-set", None):
        site.get("v2/getSeries", **({} if collection is None else {"Collection": collection}))
    directory: Path = site.app.state.archive.settings.scratch.directory
    before = {p: p.stat().st_ino for p in directory.iterdir()}
    assert len(before) == 3
    site.control.hide("1.1.7")
    (kept,) = directory.iterdir()
    assert b"beta-set" in kept.read_bytes()[:1000]
    assert len(site.get("v2/getSeries", Collection="beta-set").json()) == 4000
    assert {p: p.stat().st_ino for p in directory.iterdir()} == {kept: before[kept]}
    assert len(site.get("v2/getSeries", Collection="ALPHA set").json()) == 11_999
    assert len(site.get("v2/getSeries").json()) == 15_999


def test_an_answer_on_its_way_is_not_kept_beyond_a_change(make_site: Callable[..., ArchiveClient]) -> None:
    catalog = tiny_catalog()
    row = catalog.series.to_pylist()[0]
    rows = [{**row, "SeriesInstanceUID": f"1.1.{n}"} for n in range(20_000)]
    catalog.series = pa.Table.from_pylist(rows, schema=CATALOG_SCHEMA)
    site = make_site(catalog)
    ask = f"{site.url}/services/v1/getSeries?Collection=Alpha+Set"
    with site.session.get(ask, stream=True, timeout=30) as answer:
        first = answer.raw.read(100)
        site.control.delete("1.1.7")
        assert len(json.loads(first + answer.raw.read())) == 20_000
    assert len(site.session.get(ask, timeout=30).json()) == 19_999


@pytest.mark.slow
def test_many_threads_change_and_ask(make_site: Callable[..., ArchiveClient]) -> None:
    site = make_site()
    problems: list[str] = []

    def change(number: int) -> None:
        for turn in range(15):
            uid = site.control.add_series(f"C{number}", like="1.1", slices=1)
            if turn % 2:
                site.control.delete(uid)

    def ask() -> None:
        import requests

        for _ in range(25):
            answer = requests.get(f"{site.url}/services/v1/getSeries", timeout=30)
            rows = answer.json()
            if answer.status_code != 200 or len({r["SeriesInstanceUID"] for r in rows}) != len(rows):
                problems.append(answer.text)

    threads = [threading.Thread(target=change, args=(n,)) for n in range(3)]
    threads += [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    for number in range(3):
        assert len(site.column("v1/getSeries", "SeriesInstanceUID", Collection=f"C{number}")) == 8
    assert len(site.control.events()) == 3 * (15 + 7)


def test_many_changes_leave_few_pieces(site: ArchiveClient) -> None:
    for _ in range(70):
        site.control.add_series("Alpha Set", like="1.1", slices=1)
    assert site.app.state.archive.holdings.rows_of("Alpha Set")["Modality"].num_chunks <= 33
    assert len(site.column("v2/getSeries", "SeriesInstanceUID", Collection="Alpha Set")) == 73
