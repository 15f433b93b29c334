"""Annotation files lie beside the images, are listed in a table, and fail nothing where they are not served."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from nbia_pipeline.archive import BadAnswer, NbiaClient
from nbia_pipeline.embedded.api.zip_writer import ZipStream
from nbia_pipeline.embedded.api.zip_writer import pack as packed
from nbia_pipeline.embedded.control.fault import Fault
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.layout import annotation_name
from nbia_pipeline.mirror.annotations.extract import Extracted, extract
from nbia_pipeline.mirror.annotations.fetch import (
    AnnotationsResult,
    annotations_due,
    fetch_annotations,
    remove_annotations,
)
from nbia_pipeline.mirror.engine import Mirror
from nbia_pipeline.schema.tables import ANNOTATION_FILES, IMAGE_SERIES, SERIES_METADATA
from nbia_pipeline_tests.helpers import zips
from nbia_pipeline_tests.helpers.faults import answer, closed_early, html
from nbia_pipeline_tests.helpers.mirrored_archive import BREAST, MirroredArchive
from nbia_pipeline_tests.helpers.places import WHERE, Place, files_below, lake_in, place_at

CALL = "getDCMImage"
DAY = datetime(2024, 1, 2)  # noqa: DTZ001 - the tables state no zone
XML, NOTE = "<reading nodules='2'/>", "Größe: 18 mm"
FILES = {"reading 1.xml": XML, "note.txt": NOTE}
SIZE = len(XML.encode()) + len(NOTE.encode())
LIST = (zips.MD5_LIST, b"Filename,MD5Hash\n1-1.dcm," + b"0" * 32 + b"\n")
IMAGES = [("1-1.dcm", b"DICM" * 40), LIST]


def md5(content: bytes | str) -> str:
    return hashlib.md5(content.encode() if isinstance(content, str) else content).hexdigest()


# --- what a zip contains


def zipped(*entries: tuple[str, bytes | str]) -> bytes:
    """Return a zip as the server streams it; names may repeat."""
    stream, body = ZipStream(), b""
    for name, content in entries:
        body += b"".join(stream.entry(name, packed(content.encode() if isinstance(content, str) else content)))
    return body + stream.close()


def extracted(folder: Path, *entries: tuple[str, bytes | str], announced: int, images: int = 160) -> Extracted:
    body = zipped(*entries)
    chunks = (body[i : i + 7] for i in range(0, len(body), 7)) if len(body) < 10_000 else iter([body])
    return extract(chunks, folder / "files", images, announced)


def test_what_follows_the_list_of_digests_is_kept_whatever_its_name(tmp_path: Path) -> None:
    found = extracted(tmp_path, *IMAGES, ("a.xml", XML), ("seg.dcm", NOTE), ("LICENSE", ""), announced=SIZE)
    assert found.finding is None
    assert [(f.name, f.file, f.size, f.md5) for f in found.files] == [
        ("a.xml", "a.xml", len(XML), md5(XML)),
        ("seg.dcm", "seg.dcm", len(NOTE.encode()), md5(NOTE)),
        ("LICENSE", "LICENSE", 0, md5("")),
    ]
    stored = {p.name: p.read_text() for p in (tmp_path / "files").iterdir()}
    assert stored == {"a.xml": XML, "seg.dcm": NOTE, "LICENSE": ""}


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("../../evil.xml", "..%2F..%2Fevil.xml"),
        ("/etc/passwd", "%2Fetc%2Fpasswd"),
        ("C:\\data\\x.xml", "C%3A%5Cdata%5Cx.xml"),
        ("..", "%2E%2E"),
        ("", "unnamed"),
        ("a\0b.xml", "a%00b.xml"),
        ("Leser é.xml", "Leser%20%C3%A9.xml"),
    ],
)
def test_a_name_that_is_a_path_stays_in_its_directory(tmp_path: Path, name: str, file: str) -> None:
    found = extracted(tmp_path, *IMAGES, (name, XML), announced=len(XML))
    assert [(f.name, f.file) for f in found.files] == [(name, file)]
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()] == [f"files/{file}"]


def test_names_that_are_the_same_or_differ_in_case_only_are_kept_apart(tmp_path: Path) -> None:
    entries = [(name, f"<{n}/>") for n, name in enumerate(["a.xml", "a.xml", "A.XML", "noend", "noend"])]
    found = extracted(tmp_path, *IMAGES, *entries, announced=20)
    assert [f.file for f in found.files] == ["a.xml", "a~2.xml", "A~3.XML", "noend", "noend~2"]
    assert [(tmp_path / "files" / f.file).read_text() for f in found.files] == [text for _, text in entries]


@pytest.mark.parametrize("name", ["x" * 300 + ".xml", "ä" * 90 + ".xml", "." * 100 + "/" * 100])
def test_a_name_too_long_for_a_file_system_is_shortened(name: str) -> None:
    file = annotation_name(name)
    assert len(file) <= 200 and file.endswith(name[-4:].replace("/", "%2F")[-4:]) and "/" not in file
    assert annotation_name(f"y{name}") != file


@pytest.mark.parametrize(
    ("entries", "announced", "finding"),
    [
        ([*IMAGES, ("a.xml", XML)], SIZE, rf"announces {SIZE} bytes of annotation files, 1 with {len(XML)} arrived$"),
        (IMAGES, 5, "5 bytes of annotation files, 0 with 0 arrived$"),
        ([*IMAGES, ("a.xml", XML), ("b.xml", XML)], len(XML), f"2 with {2 * len(XML)} arrived$"),
        (IMAGES[:1], 5, "0 with 0 arrived; the archive stopped before the last image$"),
        ([], 5, "0 with 0 arrived; the archive stopped"),
        ([*IMAGES, ("bomb.xml", bytes(20 << 20))], 5, "larger than the archive announced: nothing of it was stored"),
        ([("1-1.dcm", bytes(20 << 20)), LIST, ("a.xml", "12345")], 5, "more than those in the lake: nothing"),
        ([*IMAGES, *((f"{n}.xml", "") for n in range(1002))], 5, "more than 1000 annotation files: nothing"),
    ],
)
def test_what_differs_from_the_announcement_is_a_finding(
    tmp_path: Path, entries: list[tuple[str, bytes | str]], announced: int, finding: str
) -> None:
    found = extracted(tmp_path, *entries, announced=announced)
    assert found.finding is not None and re.search(finding, found.finding)
    assert len(found.files) == (0 if "nothing" in finding else len(entries) - 2 if LIST in entries else 0)
    assert sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) < 8 << 20


def broken_checksum(body: bytes) -> bytes:
    at = body.index(b"PK\7\x08", body.index(b"a.xml"))
    return body[: at + 4] + bytes([body[at + 4] ^ 1]) + body[at + 5 :]


WHOLE = zipped(*IMAGES, ("a.xml", XML))


@pytest.mark.parametrize(
    "body",
    [b"<html>Sign in</html>", b"", WHOLE[:-30], broken_checksum(WHOLE)],
    ids=["html", "nothing", "truncated", "checksum"],
)
def test_what_is_not_a_whole_zip_is_a_bad_answer(tmp_path: Path, body: bytes) -> None:
    with pytest.raises(BadAnswer, match="the zip with the annotation files cannot be read"):
        extract(iter([body]), tmp_path / "files", 1000, len(XML))


def test_a_stream_that_is_read_again_starts_from_scratch(tmp_path: Path) -> None:
    extracted(tmp_path, *IMAGES, ("old.xml", XML), announced=len(XML))
    extracted(tmp_path, *IMAGES, ("new.xml", XML), announced=len(XML))
    assert [p.name for p in (tmp_path / "files").iterdir()] == ["new.xml"]


# --- a lake whose images are there


@dataclass
class Subject:
    """A lake that has the images of a collection, by its tables, and the archive."""

    lake: Lake
    client: NbiaClient
    archive: MirroredArchive
    receipts: dict[str, dict[str, Any]]
    sizes: dict[str, int | None]

    def write(self) -> None:
        """Write the tables, as the assets of tables and images do."""
        receipts = pa.Table.from_pylist(list(self.receipts.values()), schema=IMAGE_SERIES.schema)
        self.lake.write_table(IMAGE_SERIES, receipts, BREAST)
        rows = [{"SeriesInstanceUID": uid, "AnnotationSize": size} for uid, size in self.sizes.items()]
        self.lake.write_table(SERIES_METADATA, pa.Table.from_pylist(rows, schema=SERIES_METADATA.schema), BREAST)

    def run(self, *, retry: bool = False) -> AnnotationsResult:
        due = annotations_due(self.lake, BREAST, retry=retry)
        return fetch_annotations(self.client, self.lake, BREAST, due)

    def annotate(self, uid: str, files: dict[str, str] | None = None) -> None:
        files = FILES if files is None else files
        self.archive.control.annotate(uid, files)
        self.sizes[uid] = sum(len(text.encode()) for text in files.values())
        self.write()

    def asked(self) -> int:
        return self.archive.asked(CALL)

    def rows(self) -> list[dict[str, Any]]:
        return list(self.lake.read_table(ANNOTATION_FILES, BREAST).to_pylist())

    def stored(self) -> dict[str, bytes]:
        return {path: self.lake.read_bytes(path) or b"" for path in self.lake.sizes("annotations")}


@pytest.fixture(params=["place"])
def subject(site: MirroredArchive, place: Place, request: pytest.FixtureRequest) -> Iterator[Subject]:
    rows = [r for r in site.control.series(BREAST) if r["Visibility"] == 1]
    receipts = {
        row["SeriesInstanceUID"]: {
            **{name: row[name] for name in ("SeriesInstanceUID", "StudyInstanceUID", "PatientID", "Collection")},
            **{"Status": "complete", "Bytes": row["FileSize"], "SeriesMD5": md5(row["SeriesInstanceUID"])},
        }
        for row in sorted(rows, key=lambda r: r["SeriesInstanceUID"])
    }
    with site.client() as client:
        yield Subject(lake_in(place, request.param), client, site, receipts, dict.fromkeys(receipts))


@pytest.fixture
def uid(subject: Subject) -> str:
    """A series with two annotation files."""
    uid = next(iter(subject.receipts))
    subject.annotate(uid)
    return uid


@pytest.mark.parametrize("subject", WHERE, indirect=True)
@pytest.mark.parametrize("api", ["v2", "v4"])
def test_the_files_lie_beside_the_images_and_in_the_table_and_are_asked_for_once(
    subject: Subject, uid: str, api: str
) -> None:
    with NbiaClient(subject.archive.url, api=api) as client:
        subject.client = client
        assert subject.run() == AnnotationsResult(series=1, files=2, bytes=SIZE)
        assert subject.run() == AnnotationsResult()
    (asked,) = subject.archive.around.calls(CALL)
    assert asked.query == {"SeriesInstanceUID": uid, "IncludeAnnotation": "true", "MD5Verification": "true"}
    receipt = subject.receipts[uid]
    folder = f"annotations/{BREAST}/{receipt['PatientID']}/{receipt['StudyInstanceUID']}/{uid}"
    shared = {name: receipt[name] for name in ("StudyInstanceUID", "PatientID", "Collection", "SeriesMD5")}
    rows = subject.rows()
    assert all(row.pop("FetchedAt") > DAY for row in rows)
    assert rows == [
        {
            **{"SeriesInstanceUID": uid, **shared, "Name": name, "Path": f"{folder}/{file}", "MD5": md5(FILES[name])},
            **{"Size": len(FILES[name].encode()), "AnnotationSize": SIZE, "Finding": None},
        }
        for name, file in (("note.txt", "note.txt"), ("reading 1.xml", "reading%201.xml"))
    ]
    assert subject.stored() == {row["Path"]: FILES[row["Name"]].encode() for row in rows}


def test_duckdb_finds_the_files(subject: Subject, uid: str) -> None:
    subject.run()
    table = f"'{subject.lake.uri}/tables/annotation_files/*/*.parquet'"
    found = duckdb.execute(f"SELECT Collection, Path FROM {table} WHERE Name LIKE '%.xml'").fetchall()
    assert [(c, place_at(subject.lake.uri, path).read_text()) for c, path in found] == [(BREAST, XML)]


@pytest.mark.parametrize(
    "change",
    [
        {"Status": "pending", "Bytes": None},
        {"Status": "quarantined", "Bytes": None},
        {"Status": "withdrawn"},
        {"RefreshFailedAt": DAY},
    ],
    ids=["pending", "quarantined", "withdrawn", "refresh failed"],
)
def test_a_series_without_its_present_images_waits(subject: Subject, uid: str, change: dict[str, Any]) -> None:
    complete = dict(subject.receipts[uid])
    subject.receipts[uid] |= change
    subject.write()
    assert subject.run() == AnnotationsResult()
    subject.receipts[uid] = complete
    subject.write()
    assert subject.run().files == 2


@pytest.mark.parametrize("size", [None, 0])
def test_no_announced_size_means_no_request_and_nothing_is_deleted(
    subject: Subject, uid: str, size: int | None
) -> None:
    subject.run()
    before = (subject.rows(), subject.stored())
    subject.sizes[uid] = size
    subject.write()
    assert subject.run(retry=True) == AnnotationsResult()
    assert (subject.asked(), (subject.rows(), subject.stored())) == (1, before)


# --- fetched again


def test_new_files_replace_the_old_ones_when_the_announced_size_changes(subject: Subject, uid: str) -> None:
    subject.run()
    subject.annotate(uid, {"new.xml": XML})
    assert subject.run().files == 1
    assert [(r["Name"], r["AnnotationSize"]) for r in subject.rows()] == [("new.xml", len(XML))]
    assert list(subject.stored()) == [subject.rows()[0]["Path"]]


def test_new_images_bring_their_annotation_files(subject: Subject, uid: str) -> None:
    subject.run()
    subject.receipts[uid]["SeriesMD5"] = md5("other images")
    subject.write()
    assert subject.run().files == 2
    assert {r["SeriesMD5"] for r in subject.rows()} == {md5("other images")}
    assert subject.run() == AnnotationsResult()


@pytest.mark.parametrize("name", ["PatientID", "StudyInstanceUID"])
def test_a_series_that_moved_leaves_no_files_behind(subject: Subject, uid: str, name: str) -> None:
    subject.run()
    subject.receipts[uid][name] = "elsewhere"
    subject.write()
    assert subject.run().files == 2
    assert [r[name] for r in subject.rows()] == ["elsewhere"] * 2
    assert sorted(subject.stored()) == sorted(r["Path"] for r in subject.rows())
    assert all("/elsewhere/" in path for path in subject.stored())


@pytest.mark.parametrize("damage", ["removed", "other size"])
def test_a_file_that_is_not_there_any_longer_is_fetched_again(subject: Subject, uid: str, damage: str) -> None:
    subject.run()
    path = subject.rows()[0]["Path"]
    if damage == "removed":
        subject.lake.remove(path)
    else:
        subject.lake.put_bytes(path, b"?")
    assert subject.run().files == 2
    assert subject.stored()[path] == NOTE.encode()


def test_fewer_files_than_announced_are_kept_and_stated_and_not_asked_for_each_time(
    subject: Subject, uid: str, caplog: pytest.LogCaptureFixture
) -> None:
    subject.sizes[uid] = SIZE + 1000
    subject.write()
    result = subject.run()
    finding = f"the archive announces {SIZE + 1000:,} bytes of annotation files, 2 with {SIZE} arrived"
    assert (result.files, result.problems) == (2, {uid: finding})
    assert f"{BREAST}: of 1 of 1 series, annotation files were not fetched as announced" in caplog.text
    assert {r["Finding"] for r in subject.rows()} == {finding} and len(subject.stored()) == 2
    assert (subject.run(), subject.asked()) == (AnnotationsResult(), 1)
    subject.archive.control.annotate(uid, {**FILES, "late.xml": "x" * 1000})
    assert (subject.run(retry=True).files, subject.asked()) == (3, 2)
    assert {r["Finding"] for r in subject.rows()} == {None}


def test_no_file_at_all_is_a_row_that_says_so(subject: Subject, uid: str) -> None:
    subject.archive.control.annotate(uid, {})
    assert subject.run().files == 0
    (row,) = subject.rows()
    assert (row["SeriesInstanceUID"], row["Name"], row["Path"], row["Size"]) == (uid, None, None, None)
    assert row["Finding"].endswith("0 with 0 arrived")
    assert (subject.run(), subject.asked()) == (AnnotationsResult(), 1)


def test_older_files_stay_when_nothing_arrives_instead(subject: Subject, uid: str) -> None:
    subject.run()
    before = subject.stored()
    subject.archive.control.annotate(uid, {})
    subject.sizes[uid] = 7
    subject.write()
    assert subject.run().problems == {uid: subject.rows()[0]["Finding"]}
    assert subject.rows()[0]["Finding"].endswith("0 with 0 arrived; the older files stay")
    assert (subject.stored(), subject.run(), subject.asked()) == (before, AnnotationsResult(), 2)


# --- optional


REFUSALS = {
    "unknown to the server": answer(404),
    "not in public domain": answer(400, b"Image with given SeriesInstanceUID is not in public domain."),
    "server error": answer(500, b"Server was not able to process your request"),
    "gateway": answer(504),
    "login page": html(),
    "not a zip": answer(200, b"busy, try again"),
    "cut": closed_early(300),
    "account": answer(401),
}


@pytest.mark.parametrize("fault", REFUSALS.values(), ids=REFUSALS.keys())
def test_what_the_archive_does_not_send_is_one_warning_and_asked_for_again(
    subject: Subject, uid: str, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    subject.archive.around.inject(CALL, fault, times=9)
    with caplog.at_level(logging.WARNING, "nbia_pipeline.mirror"):
        result = subject.run()
    assert (list(result.problems), result.files) == ([uid], 0)
    assert [r.getMessage().split(": ")[0] for r in caplog.records if "annotation" in r.name] == [BREAST]
    assert subject.rows() == [] and subject.stored() == {}
    assert not list(place_at(subject.lake.uri, ".staging").glob("*.*.*"))
    subject.archive.around.reset()
    assert subject.run().files == 2


def test_three_failures_in_a_row_stop_it_and_what_was_fetched_stays(subject: Subject) -> None:
    subject.archive.control.annotate(next(iter(subject.receipts)), FILES)
    subject.sizes = dict.fromkeys(subject.receipts, SIZE)
    for n in range(20):
        subject.receipts[f"0.{n}"] = {**next(iter(subject.receipts.values())), "SeriesInstanceUID": f"0.{n}"}
        subject.sizes[f"0.{n}"] = SIZE
    subject.write()
    subject.archive.around.inject(CALL, answer(404), times=50)
    result = subject.run()
    # Those that were under way when the third failed end too.
    assert 3 <= len(result.problems) < 25 and len(result.problems) + result.left == 25


def test_refused_series_do_not_stop_the_others(subject: Subject) -> None:
    last, receipt = subject.receipts.popitem()
    for n in range(30):
        subject.receipts[f"0.{n}"] = {**receipt, "SeriesInstanceUID": f"0.{n}"}
        subject.sizes[f"0.{n}"] = SIZE
    subject.receipts[last] = receipt
    subject.annotate(last)
    result = subject.run()
    assert (result.files, sorted(result.problems), result.left) == (2, sorted(f"0.{n}" for n in range(30)), 0)
    assert {r["SeriesInstanceUID"] for r in subject.rows()} == {last}


# --- the engine, and prune


@pytest.mark.parametrize("wanted", [True, False])
def test_a_run_of_the_engine_brings_them_unless_it_is_set_otherwise(subject: Subject, uid: str, wanted: bool) -> None:
    lake = subject.lake
    lake.write_table(IMAGE_SERIES, IMAGE_SERIES.schema.empty_table(), BREAST, may_empty=True)
    subject.archive.around.inject(CALL, answer(404), times=9 if wanted else 0)
    assert Mirror(subject.client, lake, annotations=wanted).run(BREAST).fetched == 5, "images do not depend on them"
    subject.archive.around.reset()
    again = Mirror(subject.client, lake, annotations=wanted).run(BREAST)
    assert (again.fetched, again.already_there) == (0, 5)
    assert [r["Name"] for r in subject.rows()] == (["note.txt", "reading 1.xml"] if wanted else [])
    assert subject.asked() == wanted
    images = {p.parent.name for p in files_below(place_at(lake.uri, "images")) if p.suffix != ".dcm"}
    assert images == {BREAST}, "a directory of images contains nothing else; the license is above it"


def test_files_of_pruned_series_go_and_others_stay(subject: Subject, uid: str) -> None:
    other = list(subject.receipts)[1]
    subject.annotate(other, {"other.xml": XML})
    subject.run()
    gone = remove_annotations(subject.lake, BREAST, [uid, "9.9"])
    assert sorted(gone["Name"].to_pylist()) == ["note.txt", "reading 1.xml"]
    assert [r["Name"] for r in subject.rows()] == ["other.xml"]
    assert list(subject.stored()) == [subject.rows()[0]["Path"]]
    assert not list(place_at(subject.lake.uri, "annotations").rglob(uid))
    remove_annotations(subject.lake, BREAST, [other])
    assert (subject.rows(), subject.stored()) == ([], {})
    if isinstance(place := place_at(subject.lake.uri, "annotations"), Path):  # an object store has no folders
        assert list(place.iterdir()) == []
