from __future__ import annotations

import hashlib
import io
import socket
import zipfile
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from nbia_pipeline.embedded.api.downloads import by_acquisition
from nbia_pipeline.embedded.catalog.model import Catalog, StoredInstance
from nbia_pipeline.embedded.control.operations import OperationError
from nbia_pipeline.embedded.demo.catalog import demo_catalog
from nbia_pipeline_tests.helpers.archive_client import ArchiveClient
from nbia_pipeline_tests.helpers.tiny import dicom

REFUSED = (
    "The user has not been granted the access to image with given SeriesInstanceUID,{}. "
    "Please contact System Admin to resolve this issue."
)


def unzip(answer: requests.Response) -> dict[str, bytes]:
    assert answer.status_code == 200, answer.text
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def image(site: ArchiveClient, call: str = "v2/getImage", uid: str = "1.1", **parameters: Any) -> dict[str, bytes]:
    return unzip(site.get(call, SeriesInstanceUID=uid, **parameters))


def test_hash_download_lists_every_file_last(site: ArchiveClient) -> None:
    answer = site.get("v2/getImageWithMD5Hash", SeriesInstanceUID="1.1")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == 'attachment; filename="1.1.zip"'
    assert "content-length" not in answer.headers
    assert answer.headers["transfer-encoding"] == "chunked"
    entries = unzip(answer)
    assert list(entries) == ["00000001.dcm", "00000002.dcm", "00000003.dcm", "md5hashes.csv"]
    header, *rows = entries.pop("md5hashes.csv").decode().splitlines()
    assert header == "Filename,MD5Hash"
    listed = dict(row.split(",") for row in rows)
    assert listed == {name: hashlib.md5(data).hexdigest() for name, data in entries.items()}
    assert sorted(entries.values()) == sorted(dicom("1.1", f"1.1.{n}") for n in (1, 2, 3))


def test_entries_are_deflated_and_streamed(site: ArchiveClient) -> None:
    answer = site.get("v2/getImage", SeriesInstanceUID="1.1")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_DEFLATED
            assert info.flag_bits == 0x0808


def test_zips_come_in_chunks_of_8_kb(make_site: Callable[..., ArchiveClient]) -> None:
    site = make_site(demo_catalog())
    (uid, *_) = site.column("v2/getSeries", "SeriesInstanceUID", Collection="TCGA-DEMO", Modality="CT")
    parts = urlsplit(site.url)
    with socket.create_connection(("127.0.0.1", parts.port or 0)) as line:
        target = f"{parts.path}/services/v1/getImage?SeriesInstanceUID={uid}"
        line.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        with line.makefile("rb") as answer:
            while answer.readline() != b"\r\n":
                pass
            sizes, body = [], b""
            while size := int(answer.readline(), 16):
                sizes.append(size)
                body += answer.read(size + len("\r\n"))[:size]
    assert max(sizes) == sizes[0] == 8192
    assert len(sizes) > 20
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        assert archive.testzip() is None


def test_the_order_changes_from_download_to_download(site: ArchiveClient) -> None:
    orders = {tuple(image(site).values())[1:] for _ in range(12)}
    assert len(orders) > 1


def test_licence_comes_first(site: ArchiveClient) -> None:
    entries = image(site)
    assert next(iter(entries)) == "LICENSE"
    assert b"http://creativecommons.org/licenses/by/3.0/" in entries["LICENSE"]
    assert "md5hashes.csv" not in entries
    assert list(image(site, NewFileNames="yes")) == ["LICENSE", "1-1.dcm", "1-2.dcm", "2-1.dcm"]


@pytest.mark.parametrize("uid", ["2.2", "4.1", "nope", ""])
@pytest.mark.parametrize("call", ["v2/getImage", "v2/getImageWithMD5Hash", "v4/getImage"])
def test_unknown_hidden_and_forbidden_look_alike(site: ArchiveClient, call: str, uid: str) -> None:
    answer = site.get(call, SeriesInstanceUID=uid)
    assert (answer.status_code, answer.text) == (400, REFUSED.format(uid))
    assert answer.headers["content-type"] == "application/json"


def test_a_missing_digest_empties_the_hash_download(site: ArchiveClient) -> None:
    answer = site.get("v2/getImageWithMD5Hash", SeriesInstanceUID="1.2")
    assert len(answer.content) == 22
    assert unzip(answer) == {}
    assert len(image(site, uid="1.2")) == 4
    stopped = image(site, "v4/getImage", "1.2", IncludeMD5="Yes")
    assert "md5hashes.csv" not in stopped
    assert len(stopped) < 4
    assert dicom("1.2", "1.2.2") not in stopped.values()


def test_an_unreadable_file_ends_a_valid_zip(site: ArchiveClient) -> None:
    for call in ("v2/getImageWithMD5Hash", "v2/getImage"):
        entries = image(site, call, "2.1")
        assert "md5hashes.csv" not in entries
        assert dicom("2.1", "2.1.2") not in entries.values()


def test_v4_adds_hashes_on_request(site: ArchiveClient) -> None:
    assert list(image(site, "v4/getImage", IncludeMD5="yes"))[-1] == "md5hashes.csv"
    assert "md5hashes.csv" not in image(site, "v4/getImage")
    assert list(image(site, "v4/getImageWithMD5Hash"))[-1] == "md5hashes.csv"


# --- getDCMImage: images by acquisition, digests and annotation files on request


@pytest.mark.parametrize("version", ["v1", "v2", "v4"])
def test_annotation_files_come_last_and_are_not_in_the_list_of_digests(
    make_site: Callable[..., ArchiveClient], version: str
) -> None:
    site = make_site()
    site.control.annotate("1.1", {"reading.xml": "<reading/>\n", "größe (final).csv": "mm\n4,5\n"})
    images = ["1-1.dcm", "1-2.dcm", "2-1.dcm"]
    entries = image(site, f"{version}/getDCMImage", IncludeAnnotation="True", MD5Verification="TRUE")
    assert list(entries) == [*images, "md5hashes.csv", "reading.xml", "größe (final).csv"]
    assert entries["reading.xml"] == b"<reading/>\n"
    assert entries["größe (final).csv"] == b"mm\n4,5\n"
    assert sorted(row.split(",")[0] for row in entries["md5hashes.csv"].decode().splitlines()[1:]) == images
    for more in ({}, {"IncludeAnnotation": "false"}, {"IncludeAnnotation": "yes"}, {"IncludeAnnotation": ""}):
        assert list(image(site, f"{version}/getDCMImage", **more)) == images
    assert list(image(site, f"{version}/getImage")) == ["LICENSE", "00000001.dcm", "00000002.dcm", "00000003.dcm"]
    (row,) = site.get("v2/getSeriesMetaData", SeriesInstanceUID="1.1").json()
    assert row["Annotation Size"] == str(len("<reading/>\n") + len("mm\n4,5\n"))


def test_an_unreadable_image_ends_the_zip_before_the_annotation_files(make_site: Callable[..., ArchiveClient]) -> None:
    site = make_site()
    site.control.annotate("2.1", {"reading.xml": "<reading/>"})
    assert list(image(site, "v2/getDCMImage", "2.1", IncludeAnnotation="true", MD5Verification="true")) == ["1-1.dcm"]


@pytest.mark.parametrize("uid", ["2.2", "4.1", "nope"])
@pytest.mark.parametrize("version", ["v1", "v2", "v4"])
def test_get_dcm_image_words_its_refusal_as_v1_does(site: ArchiveClient, version: str, uid: str) -> None:
    answer = site.get(f"{version}/getDCMImage", SeriesInstanceUID=uid)
    text = f"Image with given SeriesInstanceUID,{uid}, is not in public domain."
    assert (answer.status_code, answer.text) == (400, text)


def test_a_series_without_annotations_has_none(site: ArchiveClient) -> None:
    (row,) = site.get("v2/getSeriesMetaData", SeriesInstanceUID="1.1").json()
    assert row["Annotation Size"] == "0"
    assert len(image(site, "v2/getDCMImage", IncludeAnnotation="true")) == 3


def test_the_demo_has_two_series_with_annotation_files() -> None:
    demo = demo_catalog()
    sizes = {r["SeriesInstanceUID"]: r["AnnotationSize"] for r in demo.series.to_pylist() if r["AnnotationSize"]}
    assert sizes == {uid: sum(map(len, files.values())) for uid, files in demo.annotations.items()}
    names = sorted(name for files in demo.annotations.values() for name in files)
    assert names == ["dose goals (final).csv", "reading-1.xml", "reading-2.xml"]


@pytest.mark.parametrize(
    ("count", "first", "last"),
    [
        *((1, "1-1", "1-1"), (9, "1-1", "1-9"), (10, "1-01", "1-10"), (99, "1-01", "1-99")),
        *((100, "1-001", "1-100"), (999, "1-001", "1-999"), (1000, "1-0001", "1-1000")),
    ],
)
def test_names_by_acquisition_are_padded_to_the_digits_of_the_changes_plus_one(
    count: int, first: str, last: str
) -> None:
    names = [
        name for name, _ in by_acquisition([StoredInstance(str(n), "1.2", n, None, 1) for n in range(1, count + 1)])
    ]
    assert (names[0], names[-1], len(set(names))) == (f"{first}.dcm", f"{last}.dcm", count)


def test_the_number_of_the_acquisition_is_padded_too() -> None:
    names = [name for name, _ in by_acquisition([StoredInstance(str(n), "1.2", n, n, 1) for n in range(1, 11)])]
    assert (names[0], names[-1]) == ("01-01.dcm", "10-01.dcm")
    same = [StoredInstance(str(n), "1.2", 1, None, 1) for n in range(1, 11)]
    assert [name for name, _ in by_acquisition(same)][-2:] == ["1-9.dcm", "1-10.dcm"]


def test_single_image(site: ArchiveClient) -> None:
    answer = site.get("v2/getSingleImage", SeriesInstanceUID="1.1", SOPInstanceUID="1.1.2")
    assert answer.content == dicom("1.1", "1.1.2")
    assert answer.headers["content-type"] == "application/dicom"
    assert answer.headers["content-disposition"] == "attachment; filename=1.1.2.dcm"
    hidden = site.get("v2/getSingleImage", SeriesInstanceUID="2.2", SOPInstanceUID="2.2.1")
    assert hidden.status_code == 200
    for uid, sop in (("1.1", "9"), ("2.1", "2.1.2"), ("4.1", "4.1.1")):
        answer = site.get("v2/getSingleImage", SeriesInstanceUID=uid, SOPInstanceUID=sop)
        assert (answer.status_code, answer.text) == (500, "Server was not able to process your request\nnull")


def test_digest_of_one_image(site: ArchiveClient) -> None:
    digest = hashlib.md5(dicom("1.1", "1.1.2")).hexdigest()
    answer = site.get("v2/getM5HashForImage", SOPInstanceUid="1.1.2")
    assert (answer.text, answer.headers["content-type"]) == (digest, "text/plain")
    assert site.get("v4/getMD5HashForImage", SOPInstanceUID="1.1.2").text == digest
    for sop in ("nope", "2.2.1", "4.1.1", "1.2.2"):
        answer = site.get("v2/getM5HashForImage", SOPInstanceUid=sop)
        assert (answer.status_code, answer.content) == (200, b"")
    assert site.get("v2/getM5HashForImage", SOPInstanceUID="1.1.2").content == b""


def short(digest: str) -> str:
    return digest.lstrip("0")


def test_digests_are_sent_as_they_are_stored(make_site: Callable[..., ArchiveClient], demo: Catalog) -> None:
    site = make_site(demo)
    assert demo.images is not None
    instances = {r["SeriesInstanceUID"]: demo.images.instances(r["SeriesInstanceUID"]) for r in demo.series.to_pylist()}
    true = {
        uid: {i.sop_instance_uid: demo.md5(uid, i.sop_instance_uid) or "" for i in of} for uid, of in instances.items()
    }
    uid = next(u for u, digests in true.items() if any(d.startswith("0") for d in digests.values()))
    sop = next(s for s, digest in true[uid].items() if digest.startswith("0"))
    for form, stored in (("short", short), ("blank", lambda digest: " "), (None, str)):
        site.control.digests(uid, form)
        digests = {s: stored(d) for s, d in true[uid].items()}
        assert site.get("v2/getM5HashForImage", SOPInstanceUid=sop).text == digests[sop]
        assert site.get("v4/getMD5HashForImage", SOPInstanceUID=sop).text == digests[sop]
        listed = image(site, "v2/getImageWithMD5Hash", uid)["md5hashes.csv"].decode().splitlines()[1:]
        assert sorted(line.split(",")[1] for line in listed) == sorted(digests.values())
        whole = hashlib.md5("".join(sorted(digests.values())).encode()).hexdigest()
        assert site.post("getMD5Hierarchy", {"SeriesInstanceUID": uid}).text == whole


def test_the_digest_of_one_image_is_blank_or_null(make_site: Callable[..., ArchiveClient]) -> None:
    site = make_site()
    site.control.digests(["1.1.2"], "blank")
    rows = dict(
        line.split(",") for line in image(site, "v2/getImageWithMD5Hash")["md5hashes.csv"].decode().splitlines()
    )
    assert sorted(rows.values())[0] == " "
    assert sum(digest == " " for digest in rows.values()) == 1
    site.control.digests("1.1.2", "null")
    assert image(site, "v2/getImageWithMD5Hash") == {}
    assert site.get("v2/getM5HashForImage", SOPInstanceUid="1.1.2").content == b""
    site.control.digests("1.1.2", None)
    assert len(image(site, "v2/getImageWithMD5Hash")) == 4
    with pytest.raises(OperationError, match="no form of a digest 'long'; there are short, blank, null"):
        site.control.digests("1.1.2", "long")


def series_hash(uid: str, *numbers: int) -> str:
    digests = sorted(hashlib.md5(dicom(uid, f"{uid}.{n}")).hexdigest() for n in numbers)
    return hashlib.md5("".join(digests).encode()).hexdigest()


def combined(*hashes: str) -> str:
    return hashlib.md5("".join(sorted(hashes)).encode()).hexdigest()


def test_hash_hierarchy(site: ArchiveClient) -> None:
    one, two, three = series_hash("1.1", 1, 2, 3), series_hash("1.2", 1, 3), series_hash("2.1", 1, 2, 3)
    patients = combined(combined(one, two)), combined(combined(three))
    for form, expected in (
        ({"SeriesInstanceUID": "1.1"}, one),
        ({"SeriesInstanceUID": "2.2"}, series_hash("2.2", 1, 2, 3)),
        ({"StudyInstanceUID": "1"}, combined(one, two)),
        ({"PatientID": "A-1", "Collection": "Alpha Set"}, combined(combined(one, two))),
        ({"Collection": "Alpha Set"}, combined(*patients)),
        ({"StudyInstanceUID": "4"}, ""),
        ({"PatientID": "A-1"}, ""),
    ):
        assert site.post("getMD5Hierarchy", form).text == expected


def test_dicom_tags(site: ArchiveClient) -> None:
    rows = site.get("getDicomTags", SeriesUID="1.1").json()
    found = {row["element"]: row["data"] for row in rows}
    assert rows[0]["element"].startswith("(0002,")
    assert found["(0008,0060)"] == "CT"
    assert found["(0008,0008)"] == "ORIGINAL\\PRIMARY"
    assert found[">(0008,0100)"] == "T-1"
    assert [r["name"] for r in rows if r["name"].startswith("End ")] == ["End Anatomic Region Sequence"]
    assert not any(element.startswith("(7FE0") for element in found)
    assert site.get("getDicomTags", SeriesUID="4.1").text == REFUSED.format("4.1")
