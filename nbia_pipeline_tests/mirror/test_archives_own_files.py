"""What the archive itself stores is right, however odd; of what cannot be used, the reason names and counts it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import parse_qs

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.lake import Lake
from nbia_pipeline.mirror.download import fetch_series
from nbia_pipeline.mirror.receipt import Receipt
from nbia_pipeline.mirror.repair import ADVICE
from nbia_pipeline.mirror.series import WantedSeries
from nbia_pipeline.schema.status import COMPLETE, QUARANTINED
from nbia_pipeline_tests.helpers.archives import FAST, serving
from nbia_pipeline_tests.helpers.dicom_bytes import DEFLATED, IMPLICIT, PREAMBLE, data_set, deflated, meta
from nbia_pipeline_tests.helpers.places import Place
from nbia_pipeline_tests.helpers.series import files_of
from nbia_pipeline_tests.helpers.zips import pack, with_true_list

SERIES = "1.2.5"
DAY = datetime(2020, 1, 1)  # noqa: DTZ001 - the server states no zone
LOST = b"lost"  # stands for a file that is not on the server's disk


@dataclass
class OneSeries:
    """An archive with one series.

    Attributes:
        files: as it stores them, by SOPInstanceUID.
        single: what getSingleImage sends instead.
    """

    files: dict[str, bytes]
    single: dict[str, bytes]

    def app(self) -> Starlette:
        def listed(request: Request) -> Response:
            return JSONResponse([{"SOPInstanceUID": uid} for uid in self.files])

        def series(request: Request) -> Response:
            return JSONResponse([])

        def collections(request: Request) -> Response:
            return JSONResponse([{"Collection": "C"}])

        def zipped(request: Request) -> Response:
            names = (f"{n:08d}.dcm" for n in range(1, len(self.files) + 1))
            return Response(pack(with_true_list(list(zip(names, self.files.values(), strict=True)))))

        def single(request: Request) -> Response:
            uid = request.query_params["SOPInstanceUID"]
            content = self.single.get(uid, self.files[uid])
            return (
                PlainTextResponse("null", 500) if content == LOST else Response(content, 200, None, "application/dicom")
            )

        async def digest(request: Request) -> Response:
            sent = {**parse_qs((await request.body()).decode()), **request.query_params}
            uid = next(uid for uid in self.files if uid in str(sent))
            return PlainTextResponse(hashlib.md5(self.files[uid]).hexdigest())

        def token(request: Request) -> Response:
            return JSONResponse({"access_token": "t", "expires_in": 7200})

        calls = {
            "v2/getSOPInstanceUIDs": listed,
            "v2/getSeries": series,
            "v2/getCollectionValues": collections,
            "v2/getImageWithMD5Hash": zipped,
            "v2/getSingleImage": single,
            "v2/getM5HashForImage": digest,
        }
        return Starlette(
            routes=[
                Route("/nbia-api/oauth/token", token, methods=["POST"]),
                *(Route(f"/nbia-api/services/{p}", call, methods=["GET", "POST"]) for p, call in calls.items()),
            ]
        )


@pytest.fixture
def fetch(place: Place) -> Iterator[Callable[..., tuple[Receipt, dict[str, bytes]]]]:
    """A function that mirrors a series of these files, and returns the receipt and what is in the lake then."""

    def fetch(files: dict[str, bytes], single: dict[str, bytes] | None = None) -> tuple[Receipt, dict[str, bytes]]:
        lake = Lake(str(place / "lake"))
        wanted = WantedSeries(SERIES, "1.2", "P", "C", len(files), sum(map(len, files.values())), DAY, DAY)
        with serving(OneSeries(files, single or {}).app()) as url, NbiaClient(url, options=FAST) as client:
            receipt = fetch_series(client, lake, wanted)
        return receipt, files_of(lake, receipt.path)

    yield fetch


def image(number: int) -> bytes:
    return PREAMBLE + meta() + data_set(f"1.2.5.{number}", SERIES, str(number))


def five(**damaged: bytes) -> dict[str, bytes]:
    """Return five images by UID, of which some are replaced: ``n3=b""``."""
    return {f"1.2.5.{n}": damaged.get(f"n{n}", image(n)) for n in range(1, 6)}


@pytest.mark.parametrize(
    "odd",
    [
        data_set("1.2.5.1"),
        data_set("1.2.5.1", order=">"),
        meta(IMPLICIT) + data_set("1.2.5.1", implicit=True),
        PREAMBLE + meta(sop="9.9") + data_set("1.2.5.1", after=b"\x28\0\x30\0UT\0\0\xf0\xff\xff\xff"),
        PREAMBLE + meta(DEFLATED) + deflated(data_set("1.2.5.1", after=bytes(5 << 20))),
        PREAMBLE + meta() + data_set("1.2.5.1\\9.9", "1.2.5\\9"),
    ],
    ids=[
        "no prefix",
        "no prefix, big endian",
        "no prefix, implicit",
        "broken after the identity",
        "deflated",
        "two UIDs",
    ],
)
def test_an_odd_file_of_the_archive_is_mirrored_byte_for_byte(
    fetch: Callable[..., tuple[Receipt, dict[str, bytes]]], odd: bytes
) -> None:
    files = {"1.2.5.1": odd, "1.2.5.2": image(2)}
    receipt, stored = fetch(files)
    assert (receipt.status, receipt.attempts, receipt.repaired) == (COMPLETE, 1, 0)
    assert receipt.verified_by == "md5+count+size"
    assert stored == {f"{uid}.dcm": content for uid, content in files.items()}


@pytest.mark.parametrize("uid", ["1." + "2" * 63, "1." + "2" * 79, "1." + "2" * 198, "1.2 3", "1.2.A/B"])
def test_a_uid_beyond_the_standard_is_one(fetch: Callable[..., tuple[Receipt, dict[str, bytes]]], uid: str) -> None:
    receipt, stored = fetch({uid: PREAMBLE + meta() + data_set(uid), "1.2.5.2": image(2)})
    assert (receipt.status, receipt.attempts, len(stored)) == (COMPLETE, 1, 2)
    assert {i.SOPInstanceUID for i in receipt.instances} == {uid, "1.2.5.2"}


@pytest.mark.parametrize("uid", ["!" * 80, "1/" * 100, "1." + "2" * 300])
def test_a_uid_that_can_name_no_file_costs_its_series_only(
    fetch: Callable[..., tuple[Receipt, dict[str, bytes]]], uid: str
) -> None:
    receipt, stored = fetch({uid: PREAMBLE + meta() + data_set(uid), "1.2.5.2": image(2)})
    assert (receipt.status, stored) == (QUARANTINED, {})
    assert f"instance {uid} is damaged in the zip, and on its own it cannot be used either: " in str(receipt.reason)


NO_SERIES = PREAMBLE + meta() + data_set("1.2.5.3", "")
OTHER_SERIES = PREAMBLE + meta() + data_set("1.2.5.3", "9.9")

EMPTY = "instance 1.2.5.{} is damaged in the zip, and on its own it cannot be used either: it is empty (0 bytes). "
# The files that the archive stores, what it sends one by one, and what the reason says before the advice.
DAMAGED: dict[str, tuple[dict[str, bytes], dict[str, bytes], str]] = {
    "one is empty": (
        five(n3=b""),
        {},
        EMPTY.format(3) + "1 of 5 instances is missing or damaged in the zip: 1.2.5.3; discarded: 00000003.dcm: it is "
        "empty (0 bytes). ",
    ),
    "two are empty": (
        five(n2=b"", n5=b""),
        {},
        EMPTY.format(2) + "2 of 5 instances are missing or damaged in the zip: 1.2.5.2, 1.2.5.5; discarded: "
        "00000002.dcm: it is empty (0 bytes); 00000005.dcm: it is empty (0 bytes). ",
    ),
    "five are empty": (
        five(n1=b"", n2=b"", n3=b"", n4=b"", n5=b""),
        {},
        EMPTY.format(1) + "5 of 5 instances are missing or damaged in the zip: 1.2.5.1, 1.2.5.2, 1.2.5.3 and 2 more; "
        "discarded: 00000001.dcm: it is empty (0 bytes); 00000002.dcm: it is empty (0 bytes); 00000003.dcm: it is "
        "empty (0 bytes); and 2 more. ",
    ),
    "one has no series": (
        five(n3=NO_SERIES),
        {},
        "instance 1.2.5.3 is damaged in the zip, and on its own it cannot be used either: its SeriesInstanceUID is "
        "empty. 1 of 5 instances is missing or damaged in the zip: 1.2.5.3; discarded: 00000003.dcm: its "
        "SeriesInstanceUID is empty. ",
    ),
    "one belongs to another series": (
        five(n3=OTHER_SERIES),
        {},
        "instance 1.2.5.3 is damaged in the zip, and on its own it cannot be used either: it belongs to series 9.9, as "
        "instance 1.2.5.3. 1 of 5 instances is missing or damaged in the zip: 1.2.5.3; discarded: 00000003.dcm: it "
        "belongs to series 9.9, as instance 1.2.5.3. ",
    ),
    "one is a text": (
        five(n3=b"Not found. " * 60),
        {},
        "instance 1.2.5.3 is damaged in the zip, and on its own it cannot be used either: it is not DICOM: it begins "
        "with b'Not found. Not f'. 1 of 5 instances is missing or damaged in the zip: 1.2.5.3; discarded: ",
    ),
    "one is a page": (
        five(n3=b"<html>lost</html>"),
        {},
        "instance 1.2.5.3 is damaged in the zip, and on its own it cannot be used either: it is not DICOM: it begins "
        "with b'<html>lost</html'. 1 of 5 instances is missing or damaged in the zip: 1.2.5.3; discarded: ",
    ),
    "one is empty, and lost": (
        five(n3=b""),
        {"1.2.5.3": LOST},
        "instance 1.2.5.3 is damaged in the zip, and the archive cannot send it on its own: ",
    ),
    "one is empty, and another one comes": (
        five(n3=b""),
        {"1.2.5.3": image(4)},
        "instance 1.2.5.3 is damaged in the zip, and on its own it cannot be used either: asked for instance 1.2.5.3, "
        "the archive sent 1.2.5.4. 1 of 5 instances is missing or damaged in the zip: 1.2.5.3; discarded: "
        "00000003.dcm: it is empty (0 bytes). ",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_the_reason_of_a_damaged_instance_names_and_counts_it(
    fetch: Callable[..., tuple[Receipt, dict[str, bytes]]], name: str
) -> None:
    files, single, why = DAMAGED[name]
    receipt, stored = fetch(files, single)
    assert (receipt.status, receipt.attempts, stored) == (QUARANTINED, 3, {})
    assert receipt.reason is not None
    assert receipt.reason.startswith(why)
    assert receipt.reason.endswith(ADVICE)
    assert f" of 5 instances {'is' if name.startswith('one') else 'are'} missing or damaged in" in receipt.reason
    assert "force" not in receipt.reason and "InvalidDicomError" not in receipt.reason
