"""Zips that open and are wrong: whatever the archive sends, the lake comes out as if nothing had happened."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from nbia_pipeline.embedded.control.fault import Fault
from nbia_pipeline_tests.helpers import truth
from nbia_pipeline_tests.helpers.mirrored_archive import MirroredArchive

pytestmark = pytest.mark.slow

HASHED = "getImageWithMD5Hash"
SLICES = 14


@dataclass(frozen=True)
class Case:
    """A fault in the zip of a series of 14 images.

    Attributes:
        kind: of fault.
        fraction: at which image; 0.6 is the ninth.
        once: how often the series is downloaded, and how many images one by one, if it happens once.
        always: the same if it happens each time.
    """

    kind: str
    fraction: float
    once: tuple[int, int]
    always: tuple[int, int]


CASES = [
    # Short of all: getImage is asked at once.
    Case("missing_file", 0.0, (1, 0), (1, 0)),
    Case("no_files", 0.5, (1, 0), (1, 0)),
    # Without a list nothing is proven by the zip; in the end what came is compared with the digests of single images.
    Case("missing_file", 0.2, (2, 0), (3, 12)),
    Case("missing_file", 0.6, (2, 0), (3, 6)),
    Case("cut_file", 0.6, (2, 0), (3, 6)),
    Case("cut_file", 0.99, (2, 0), (3, 1)),
    Case("no_hashes", 0.5, (2, 0), (3, 0)),
    # Short of one: mended at once.
    Case("lost_file", 0.0, (1, 1), (1, 1)),
    Case("lost_file", 0.99, (1, 1), (1, 1)),
    Case("short_file", 0.5, (1, 1), (1, 1)),
    Case("wrong_hash", 0.5, (1, 0), (1, 0)),
    Case("empty_hash", 0.5, (1, 0), (1, 0)),
]


@pytest.mark.parametrize("always", [False, True], ids=["once", "always"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind} at {case.fraction}")
def test_what_a_zip_lacks_is_mended(site: MirroredArchive, case: Case, always: bool) -> None:
    uid = site.uid(SLICES)
    fault = Fault(case.kind, HASHED, uid, fraction=case.fraction, times=None if always else 1)
    site.wrong(fault)
    site.run()
    downloads, healed = case.always if always else case.once
    assert site.asked(HASHED, uid) == downloads
    assert site.asked("getSingleImage", uid) == healed == truth.column(site.folder, "Healed")[uid]
    site.expect_true()


@pytest.mark.parametrize("kind", ["missing_file", "lost_file", "short_file", "wrong_hash", "no_hashes"])
def test_a_series_of_one_image_is_mended_too(site: MirroredArchive, kind: str) -> None:
    site.wrong(Fault(kind, HASHED, site.uid(1)))
    site.run()
    site.expect_true()


@pytest.mark.parametrize("kind", ["flip", "end_early", "empty"])
def test_what_is_fetched_by_itself_is_proven_as_well(site: MirroredArchive, kind: str) -> None:
    uid = site.uid(SLICES)
    single = Fault(kind, "getSingleImage", uid, fraction=0.9)
    site.wrong(Fault("lost_file", HASHED, uid), single)
    receipts = {r.wanted.SeriesInstanceUID: r for r in site.run()}
    assert receipts[uid].status == "quarantined" and receipts[uid].reason
    assert truth.contents(site.folder).files == site.expected().without(uid).files
    site.wrong(Fault("lost_file", HASHED, uid), replace(single, times=1))
    assert [(r.status, r.attempts) for r in site.run()] == [("complete", 2)]
    site.expect_true()


@pytest.mark.parametrize("kind", ["lost_file", "missing_file", "no_hashes", "wrong_hash"])
def test_v4_is_mended_too(site: MirroredArchive, kind: str) -> None:
    site.api = "v4"
    site.wrong(Fault(kind, HASHED, site.uid(SLICES)))
    site.run()
    told = truth.contents(site.folder)
    assert told.files == site.expected().files
    assert {row["Status"] for row in told.receipts.values()} == {"complete"}
    assert truth.leftovers(site.folder) == []


HOSTILE = {
    "path_name": "a name that is a path: '../../outside.dcm'",
    "absolute_name": "a name that is a path: '/tmp/outside.dcm'",
    "duplicate_name": "twice",
    "bomb": "larger than the archive announced",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_zip_is_refused_and_the_others_are_not_held_up(
    site: MirroredArchive, kind: str, tmp_path: Path
) -> None:
    uid = site.uid(SLICES)
    site.wrong(Fault(kind, HASHED, uid, size=64 << 20))
    receipts = {r.wanted.SeriesInstanceUID: r for r in site.run()}
    assert (receipts[uid].status, receipts[uid].attempts) == ("quarantined", 3)
    assert HOSTILE[kind] in str(receipts[uid].reason)
    held, expected = truth.contents(site.folder), site.expected()
    assert held.without(uid) == expected.without(uid)
    assert held.files == expected.without(uid).files
    assert held.receipts[uid]["Status"] == "quarantined" and held.receipts[uid]["Bytes"] is None
    assert truth.leftovers(site.folder) == []
    assert [p for p in (tmp_path, tmp_path.parent, Path("/tmp")) if (p / "outside.dcm").exists()] == []
    # The archive comes to its senses.
    site.wrong()
    assert [r.status for r in site.run()] == ["complete"]
    site.expect_true()


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_zip_is_asked_for_again(site: MirroredArchive, kind: str) -> None:
    site.wrong(Fault(kind, HASHED, site.uid(SLICES), size=64 << 20, times=1))
    site.run()
    assert site.asked(HASHED, site.uid(SLICES)) == 2
    site.expect_true()


# The first and the last bytes too: the beginning of the zip, and its directory.
@pytest.mark.parametrize("fraction", [0.0, 0.00002, 0.13, 0.29, 0.5, 0.71, 0.87, 0.97, 0.9995, 0.99999])
def test_a_flipped_bit_anywhere_is_found(site: MirroredArchive, fraction: float) -> None:
    uid = site.uid(SLICES)
    site.wrong(Fault("flip", HASHED, uid, fraction=fraction, times=1))
    site.run()
    site.expect_true()


def test_every_file_of_every_zip_is_flipped_or_short(site: MirroredArchive) -> None:
    site.collections = ("TCGA-DEMO",)
    site.wrong(
        *(Fault(kind, HASHED, probability=0.4) for kind in ("flip", "short_file", "cut_file", "lost_file")),
        seed=1,
    )
    site.run_until_whole((), most=4)
    site.expect_true()
