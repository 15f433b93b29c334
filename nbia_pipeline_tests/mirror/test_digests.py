"""MD5s as archives have them: without leading zeros, blank, or not at all, and from calls that a server may lack."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from nbia_pipeline.archive import ArchiveUnreachable, BadAnswer, LoginRefused, NbiaClient
from nbia_pipeline.embedded.control.fault import Fault
from nbia_pipeline.mirror.download import TRIES
from nbia_pipeline.mirror.repair import NoAnswer, Proofs
from nbia_pipeline.mirror.unpack import MD5_LIST, UnsafeZip, ZipBounds, unpack
from nbia_pipeline.schema.digests import padded, possible_series_md5s, series_md5
from nbia_pipeline.schema.status import COMPLETE, QUARANTINED
from nbia_pipeline_tests.helpers import zips
from nbia_pipeline_tests.helpers.archives import FAST
from nbia_pipeline_tests.helpers.faults import NO_SUCH_ENDPOINT, answer, edited, html
from nbia_pipeline_tests.helpers.one_series import IMAGES, UID, ZEROS, OneSeries, Stored, image

HASHED, SINGLE, LISTED = "getImageWithMD5Hash", "getSingleImage", "getSOPInstanceUIDs"
OF_IMAGE, OF_SERIES = "getM5HashForImage", "getMD5Hierarchy"
ROOM = ZipBounds(1 << 20, 100)
# What it takes where everything is right.
SMOOTH = {HASHED: 1}


def mixed(number: int, md5: str) -> str:
    return md5.lstrip("0") if number == 2 else md5


STORED: dict[str, Stored] = {
    "padded": lambda number, md5: md5,
    "without leading zeros": lambda number, md5: md5.lstrip("0"),
    "some without leading zeros": mixed,
    "in upper case": lambda number, md5: md5.upper(),
    "with blanks around it": lambda number, md5: f" {md5.lstrip('0')} ",
}


def blank(*numbers: int) -> Stored:
    return lambda number, md5: " " if number in numbers else md5.lstrip("0")


def digests() -> list[str]:
    return [hashlib.md5(image(n)).hexdigest() for n in ZEROS]


# --- leading zeros


@pytest.mark.parametrize(
    ("stored", "digest"),
    [
        ("1" * 32, "1" * 32),
        ("ABC", "0" * 29 + "abc"),
        ("0", "0" * 32),
        (" f\r\n", "0" * 31 + "f"),
        ("", None),
        (" ", None),
        ("1" * 33, None),
        ("null", None),
        ("０", None),
    ],
)
def test_a_digest_has_32_digits(stored: str, digest: str | None) -> None:
    assert padded(stored) == digest


def test_the_digest_of_a_series_is_that_of_the_stored_ones() -> None:
    whole = ["0" * 31 + "f", "1" * 32, "00" + "a" * 30]
    short = ["f", "1" * 32, "a" * 30]
    possible = possible_series_md5s(whole)
    assert {series_md5(whole), series_md5(short)} <= possible
    assert series_md5(["f", *whole[1:]]) not in possible
    assert series_md5(["f", *whole[1:]]) in possible_series_md5s(["f", *whole[1:]])


@pytest.mark.parametrize("stored", STORED.values(), ids=STORED)
def test_a_zip_is_verified_by_the_digests_as_they_are_stored(one: OneSeries, stored: Stored) -> None:
    one.store.stored = stored
    receipt = one.fetch()
    assert (receipt.status, receipt.attempts, receipt.repaired) == (COMPLETE, 1, 0)
    assert receipt.verified_by == "md5+count+size"
    assert one.asked() == SMOOTH
    assert [i.MD5 for i in receipt.instances] == digests()
    assert receipt.row()["SeriesMD5"] == series_md5(digests())


@pytest.mark.parametrize("stored", STORED.values(), ids=STORED)
def test_a_single_image_is_verified_by_its_digest_as_it_is_stored(one: OneSeries, stored: Stored) -> None:
    one.store.stored = stored
    one.faults.inject(HASHED, Fault("lost_file"))
    receipt = one.fetch()
    assert (receipt.status, receipt.verified_by, receipt.repaired) == (COMPLETE, "md5", 1)
    assert one.asked()[OF_IMAGE] == 1 and OF_SERIES not in one.asked()


@pytest.mark.parametrize(
    ("stored", "verified_by"),
    [(STORED["padded"], "md5"), (STORED["without leading zeros"], "md5"), (mixed, "count+size")],
    ids=["padded", "without leading zeros", "some without leading zeros"],
)
def test_the_digest_of_a_series_verifies_a_zip_without_a_list(one: OneSeries, stored: Stored, verified_by: str) -> None:
    """Where it does not match, that is no damage: the size decides."""
    one.store.stored = stored
    one.faults.inject(HASHED, zips.altered(zips.nothing_at_all))
    receipt = one.fetch()
    assert (receipt.status, receipt.verified_by, receipt.attempts) == (COMPLETE, verified_by, 1)
    assert one.asked() == {HASHED: 1, "getImage": 1, LISTED: 1, OF_SERIES: 1}


# --- blanks


@pytest.mark.parametrize("numbers", [(1,), (2,), (1, 2, 4, 5), tuple(ZEROS)], ids=str)
@pytest.mark.parametrize("api", ["v2", "v4"])
def test_a_blank_costs_one_request(one: OneSeries, numbers: tuple[int, ...], api: str) -> None:
    one.store.stored = blank(*numbers)
    receipt = one.fetch(api)
    assert (receipt.status, receipt.verified_by, receipt.attempts, receipt.repaired) == (COMPLETE, "count+size", 1, 0)
    assert one.asked() == {**SMOOTH, LISTED: 1, OF_SERIES: 1}
    assert [i.MD5 for i in receipt.instances] == digests()


def test_a_digest_that_only_the_zip_lacks_is_verified_by_that_of_the_series(one: OneSeries) -> None:
    one.store.stored = STORED["without leading zeros"]
    one.faults.inject(HASHED, zips.altered(zips.empty_digest))
    receipt = one.fetch()
    assert (receipt.status, receipt.verified_by) == (COMPLETE, "md5")
    assert one.asked() == {**SMOOTH, LISTED: 1, OF_SERIES: 1}


def test_where_the_archive_has_no_digest_at_all_the_zip_is_empty_and_getimage_is_asked_at_once(
    one: OneSeries,
) -> None:
    one.store.stored = lambda number, md5: None if number == 3 else md5
    receipt = one.fetch()
    assert (receipt.status, receipt.verified_by, receipt.attempts) == (COMPLETE, "count+size", 1)
    assert one.asked() == {HASHED: 1, "getImage": 1, LISTED: 1, OF_SERIES: 1}


def test_a_blank_and_another_size_are_not_taken(one: OneSeries) -> None:
    one.store.stored, one.figures = blank(3), {"FileSize": 1000}
    receipt = one.fetch()
    assert receipt.status == QUARANTINED
    size = sum(len(image(n)) for n in ZEROS)
    assert f"the files have {size} bytes where getSeries states 1000" in str(receipt.reason)


def test_a_blank_and_no_size_are_not_taken(one: OneSeries) -> None:
    """With the embedded archive getSeriesSize knows no more than getSeries."""
    one.store.stored, one.figures = blank(3), {"FileSize": None}
    assert one.fetch().status == QUARANTINED


# --- the list in the zip


def listed(text: bytes, tmp_path: Path) -> set[str]:
    """Return the names of the verified files of a zip with a list."""
    body = zips.pack([*((f"{n:08d}.dcm", image(n)) for n in ZEROS), (MD5_LIST, text)])
    return set(unpack([body], tmp_path / "files", UID, ROOM).verified())


def rows() -> list[tuple[str, str]]:
    return [("Filename", "MD5Hash"), *((f"{n:08d}.dcm", digest) for n, digest in zip(ZEROS, digests(), strict=True))]


LISTS = {
    "a byte-order mark": "\ufeff" + "\n".join(",".join(row) for row in rows()),
    "CRLF": "".join(f"{name},{digest}\r\n" for name, digest in rows()),
    "CR": "".join(f"{name},{digest}\r" for name, digest in rows()),
    "blank lines": "\n\n" + "\n \n\n".join(",".join(row) for row in rows()) + "\n,\n\n",
    "blanks": "".join(f" {name} ,\t{digest} \n" for name, digest in rows()),
    "quotes": "".join(f'"{name}", "{digest}"\n' for name, digest in rows()),
    "another case": "".join(f"{name},{digest}\n" for name, digest in rows()).upper().replace(".DCM", ".dcm"),
    "tabs": "".join(f"{name}\t{digest}\r\n" for name, digest in rows()),
    "semicolons": "".join(f"{name};{digest}\n" for name, digest in rows()),
    "no titles": "".join(f"{name},{digest}\n" for name, digest in rows()[1:]),
    "other titles": "".join(f"{name},{digest}\n" for name, digest in [("File", "MD5"), *rows()[1:]]),
    "three columns": "".join(f"{name},{digest},x\n" for name, digest in rows()),
    "everything": "\ufeff\r\n" + "".join(f' "{name}" , {digest.lstrip("0")}\r\n\r\n' for name, digest in rows()),
}


@pytest.mark.parametrize("text", LISTS.values(), ids=LISTS)
def test_a_list_is_read_by_its_meaning(text: str, tmp_path: Path) -> None:
    assert listed(text.encode(), tmp_path) == {f"{UID}.{n}" for n in ZEROS}


def with_odd_lines() -> str:
    name, digest = rows()[1]
    odd = ["x" * 200_000 + ",1", '"no end,' + digest, f"{name}\0,{digest}", "a\rb", ",", '"' + "y" * 5000]
    return "\n".join([*odd, *(",".join(row) for row in rows()), *odd])


@pytest.mark.parametrize("cut", [1, 7, 1 << 20])
def test_a_line_that_is_none_costs_no_other(cut: int, tmp_path: Path) -> None:
    body = zips.pack([*((f"{n:08d}.dcm", image(n)) for n in ZEROS), (MD5_LIST, with_odd_lines().encode())])
    found = unpack(
        (body[at : at + cut] for at in range(0, len(body), cut)), tmp_path / "files", UID, ZipBounds(1 << 30, 1000)
    )
    assert set(found.verified()) == {f"{UID}.{n}" for n in ZEROS}


def test_a_list_of_far_more_lines_than_files_is_refused(tmp_path: Path) -> None:
    body = zips.pack([("00000001.dcm", image(1)), (MD5_LIST, b"a,b\n" * (ROOM.files + 2))])
    with pytest.raises(UnsafeZip, match=rf"md5hashes\.csv has more than {ROOM.files} lines"):
        unpack([body], tmp_path / "files", UID, ROOM)


def test_an_empty_sop_instance_uid_in_the_list_is_left_out(one: OneSeries) -> None:
    one.figures = {"FileSize": 12345}  # else the list is not asked
    one.faults.inject(LISTED, edited(lambda rows: rows.append({"SOPInstanceUID": ""})))
    receipt = one.fetch()
    assert (receipt.status, receipt.verified_by, len(receipt.instances)) == (COMPLETE, "md5", IMAGES)


NO_LISTS = [
    b"",
    b"\xef\xbb\xbf\r\n",
    b"Filename\n1.dcm\n",
    b"<html>",
    "Filename,MD5Hash\n1,2\n".encode("utf-16"),
    b"\0",
]


@pytest.mark.parametrize("text", NO_LISTS)
def test_where_the_list_is_none_the_images_are_asked_for_their_digests(one: OneSeries, text: bytes) -> None:
    one.faults.inject(HASHED, zips.altered(lambda entries: [*entries[:-1], (MD5_LIST, text)]), times=TRIES)
    receipt = one.fetch()
    assert (receipt.status, receipt.verified_by, len(receipt.instances)) == (COMPLETE, "md5", IMAGES)
    assert (one.asked()[HASHED], one.asked()[OF_IMAGE]) == (TRIES, IMAGES)


def test_a_list_that_is_none_is_named(tmp_path: Path) -> None:
    body = zips.pack([("00000001.dcm", image(1)), (MD5_LIST, b"<html>")])
    found = unpack([body], tmp_path / "files", UID, ROOM)
    assert (found.digests, list(found.instances)) == (None, [f"{UID}.1"])
    assert found.faults == ["md5hashes.csv: it is not a list of digests, it begins with b'<html>'"]


@pytest.mark.parametrize("text", ["no digest", "1" * 33, "<none>", "null"])
def test_a_digest_that_is_none_is_asked_for_or_named(one: OneSeries, text: str) -> None:
    def spoiled(entries: zips.Entries) -> zips.Entries:
        name, content = entries[-1]
        first, second, *rest = content.decode().splitlines()
        return [*entries[:-1], (name, "\n".join([first, f"{second.split(',')[0]},{text}", *rest]).encode())]

    one.faults.inject(HASHED, zips.altered(spoiled), times=4)
    receipt = one.fetch()
    assert (receipt.status, receipt.verified_by, one.asked()[OF_IMAGE]) == (COMPLETE, "md5", 1)
    one.faults.inject(OF_IMAGE, answer(500, NO_SUCH_ENDPOINT))
    receipt = one.fetch()
    assert receipt.status == QUARANTINED
    assert f"md5hashes.csv lists {text!r} for instance {UID}." in str(receipt.reason)
    assert "which is not an MD5" in str(receipt.reason)


# --- calls that the archive lacks

BROKEN = {
    "500, no such call": answer(500, NO_SUCH_ENDPOINT),
    "404": answer(404, b"<html>Not Found</html>"),
    "405": answer(405),
    "403": answer(403),
    "504": answer(504),
    "500 each time": answer(500, b"Server was not able to process your request"),
    "a page each time": html(),
    "502 each time": answer(502),
}


@pytest.mark.parametrize("fault", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("also_series", [False, True], ids=["the call for an image", "and the call for a series"])
def test_without_the_digest_call_a_short_zip_is_completed(
    one: OneSeries, fault: Fault, also_series: bool, caplog: pytest.LogCaptureFixture
) -> None:
    one.faults.inject(HASHED, zips.altered(zips.one_short_and_consistent), times=9)
    for call in (OF_IMAGE, OF_SERIES) if also_series else (OF_IMAGE,):
        one.faults.inject(call, fault, times=99)
    receipt = one.fetch()
    assert (receipt.status, receipt.repaired) == (COMPLETE, 1)
    assert receipt.verified_by == ("count+size" if also_series else "md5")
    assert [i.MD5 for i in receipt.instances] == digests()
    warnings = [r.message for r in caplog.records if "does not answer for the MD5 of an image" in r.message]
    assert len([text for text in warnings if "series are verified without it" in text]) == 1


def test_v4_without_the_digest_call(one: OneSeries) -> None:
    one.faults.inject(HASHED, zips.altered(zips.one_short_and_consistent))
    one.faults.inject("getMD5HashForImage", answer(500, NO_SUCH_ENDPOINT))
    receipt = one.fetch("v4")
    assert (receipt.status, receipt.repaired, receipt.verified_by) == (COMPLETE, 1, "md5")


def test_what_is_missing_is_not_asked_for_again(one: OneSeries) -> None:
    one.faults.inject(HASHED, zips.altered(lambda entries: [*entries[:2], entries[-1]]), times=9)
    one.faults.inject(OF_IMAGE, answer(404), times=9)
    receipt = one.fetch()
    assert (receipt.status, receipt.repaired, receipt.verified_by) == (COMPLETE, IMAGES - 2, "md5")
    assert one.asked()[OF_IMAGE] == 1


@pytest.mark.parametrize(
    "fault", [BROKEN["404"], BROKEN["504"], BROKEN["a page each time"]], ids=["404", "504", "html"]
)
def test_without_the_size_call_a_series_of_unknown_size_is_verified(one: OneSeries, fault: Fault) -> None:
    one.figures = {"FileSize": None}
    one.faults.inject("getSeriesSize", fault, times=99)
    receipt = one.fetch()
    assert (receipt.status, receipt.verified_by) == (COMPLETE, "md5")


def test_the_list_of_instances_is_not_optional(one: OneSeries) -> None:
    one.figures = {"FileSize": 12345}
    one.faults.inject(LISTED, answer(500, NO_SUCH_ENDPOINT), times=9)
    with pytest.raises(BadAnswer, match="no such endpoint"):
        one.fetch()


def test_a_call_that_failed_once_is_made_again_and_an_answer_resets_the_count(one: OneSeries) -> None:
    one.faults.inject(OF_IMAGE, *[answer(500)] * 4, answer(200, b"a"), *[answer(500)] * 6)
    with one.client() as client:
        proofs = Proofs(client)
        for _ in range(2):
            with pytest.raises(NoAnswer, match=r"does not answer for the MD5 of an image: .*status 500"):
                proofs.md5_of_image("1")
        assert proofs.md5_of_image("1") == "a".zfill(32)
        for _ in range(2):
            with pytest.raises(NoAnswer):
                proofs.md5_of_image("1")
        assert proofs.md5_of_image("1") is None
        assert proofs.md5_of_image("1") is None
    assert one.faults.count(OF_IMAGE) == 4 + 1 + 6


@pytest.mark.parametrize("name", ["404", "403", "504", "500, no such call"])
def test_what_is_given_up_is_given_up_for_the_client_with_one_warning(one: OneSeries, name: str) -> None:
    one.faults.inject(OF_IMAGE, BROKEN[name], times=99)
    with one.client() as client:
        assert Proofs(client).md5_of_image("1") is Proofs(client).md5_of_image("2") is None
        asked = one.faults.count(OF_IMAGE)
        assert Proofs(client, final=True).md5_of_image("3") is None
        (warning,) = client.warnings
    assert warning.startswith(
        "the archive does not answer for the MD5 of an image, so series are verified without it: "
    )
    assert one.faults.count(OF_IMAGE) == asked <= 2


@pytest.mark.parametrize("final", [False, True])
def test_an_account_that_is_refused_is_no_missing_call(one: OneSeries, final: bool) -> None:
    one.faults.inject("token", answer(401), times=9)
    with one.client() as client, pytest.raises(LoginRefused):
        Proofs(client, final=final).md5_of_image("1")


def test_no_connection_is_no_missing_call() -> None:
    client = NbiaClient("http://127.0.0.1:9/nbia-api", api="v4", options=replace(FAST, tries=1))
    with client, pytest.raises(ArchiveUnreachable, match="refused"):
        Proofs(client).md5_of_series("1")
