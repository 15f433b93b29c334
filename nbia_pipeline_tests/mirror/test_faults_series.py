"""The archive changes under the run: series are hidden, shown, replaced; or it holds less of them than it should."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest

from nbia_pipeline.archive import ArchiveError
from nbia_pipeline.embedded.catalog.model import Catalog, ImageStore, StoredInstance
from nbia_pipeline.embedded.control.fault import Fault
from nbia_pipeline.embedded.server.fault_injection import FaultedRequest
from nbia_pipeline_tests.helpers import truth
from nbia_pipeline_tests.helpers.faults import custom
from nbia_pipeline_tests.helpers.mirrored_archive import MirroredArchive, mirrored_archive
from nbia_pipeline_tests.helpers.places import Place

pytestmark = pytest.mark.slow

HASHED = "getImageWithMD5Hash"
LISTED = "getSOPInstanceUIDs"
SLICES = 14


# --- hidden


@pytest.mark.parametrize("endpoint", [HASHED, LISTED])
def test_a_series_hidden_since_it_was_listed_is_unavailable_until_it_is_shown(
    site: MirroredArchive, endpoint: str
) -> None:
    uid = site.uid(SLICES)
    if endpoint == LISTED:
        site.state_no_counts(uid)
    calm = site.expected()
    # By the time of the list the files are here, but nothing tells whether they are all: the list is then empty.
    site.wrong(Fault("hide", endpoint, uid, times=1))
    receipts = {r.wanted.SeriesInstanceUID: r.status for r in site.run()}
    if endpoint == LISTED and receipts[uid] == "complete":
        # The server lists the instances of hidden series too, so that the whole series was proven.
        assert truth.contents(site.folder) == calm
        return
    assert receipts.pop(uid) == "unavailable" and set(receipts.values()) == {"complete"}
    held = truth.contents(site.folder)
    assert held.files == calm.without(uid).files
    assert held.instances == calm.without(uid).instances
    assert held.receipts[uid]["Status"] == "unavailable"
    assert uid in held.receipts[uid]["Reason"]
    assert truth.leftovers(site.folder) == []
    # While it is hidden nothing is asked for.
    asked = site.asked(HASHED)
    assert site.run() == [] and site.asked(HASHED) == asked
    site.control.show(uid)
    assert [r.wanted.SeriesInstanceUID for r in site.run()] == [uid]
    site.expect_true()


def test_a_series_hidden_while_it_is_in_the_lake_stays(site: MirroredArchive) -> None:
    site.run()
    calm = truth.contents(site.folder)
    site.control.hide(site.uid(SLICES))
    assert site.run() == []
    assert truth.contents(site.folder) == calm


# --- replaced


def _replace_before(
    site: MirroredArchive, endpoint: str, uid: str, slices: int | None, *, hidden: bool = False
) -> None:
    """Let a series be replaced just before the first call of an endpoint that is about it."""
    names = {
        uid,
        *(row["SOPInstanceUID"] for row in site.expected().instances.values() if row["SeriesInstanceUID"] == uid),
    }
    todo = [uid]

    async def act(request: FaultedRequest) -> None:
        if todo and names & set(request.exchange.query.values()):
            site.control.replace(todo.pop(), hidden=hidden, slices=slices)
        await request.pass_on()

    site.around.inject(endpoint, custom(act), times=100)


@pytest.mark.parametrize("endpoint", [HASHED, LISTED])
@pytest.mark.parametrize("slices", [None, 9, 17], ids=["as many", "fewer", "more"])
def test_a_series_replaced_since_it_was_listed_is_taken_as_it_is_now(
    site: MirroredArchive, slices: int | None, endpoint: str
) -> None:
    uid = site.uid(SLICES)
    if endpoint == LISTED:
        site.state_no_counts(uid)
    _replace_before(site, endpoint, uid, slices)
    first = {r.wanted.SeriesInstanceUID: r for r in site.run(streams=1)}
    assert {r.status for r in first.values()} == {"complete"}
    if slices is None and endpoint == LISTED:
        # What came was whole when it was sent; the next list tells that there is something newer.
        assert truth.contents(site.folder).without(uid) == site.expected().without(uid)
    else:
        assert truth.contents(site.folder).files == site.expected().files
    assert truth.leftovers(site.folder) == []
    # Where count and size are as before, the receipt has the older date: it is fetched once more.
    assert [r.wanted.SeriesInstanceUID for r in site.run()] == ([uid] if slices is None else [])
    site.expect_true()


@pytest.mark.parametrize("endpoint", [LISTED, "getM5HashForImage", "getSingleImage"])
@pytest.mark.parametrize("slices", [None, 9], ids=["as many", "fewer"])
@pytest.mark.parametrize("hidden", [False, True], ids=["shown", "hidden"])
def test_a_series_replaced_while_it_is_mended_is_no_mixture(
    site: MirroredArchive, hidden: bool, slices: int | None, endpoint: str
) -> None:
    """The zip had all but one instance of the old contents; the one fetched by itself would be of the new."""
    uid = site.uid(SLICES)
    old = _digests(site.expected(), uid)
    site.wrong(Fault("lost_file", HASHED, uid, times=1))
    _replace_before(site, endpoint, uid, slices, hidden=hidden)
    status = {r.wanted.SeriesInstanceUID: r.status for r in site.run()}
    site.control.show(uid)
    held, new = _digests(truth.contents(site.folder), uid), _digests(site.expected(), uid)
    assert (status[uid], held) in [("complete", old), ("complete", new), ("unavailable", set())]
    site.run()
    site.expect_true()


def _digests(contents: truth.Contents, uid: str) -> set[str]:
    return {row["MD5"] for row in contents.instances.values() if row["SeriesInstanceUID"] == uid}


@pytest.mark.parametrize("slices", [None, 9, 17], ids=["as many", "fewer", "more"])
def test_a_series_replaced_in_the_lake_is_swapped_whatever_goes_wrong(
    site: MirroredArchive, slices: int | None
) -> None:
    site.run()
    uid = site.uid(SLICES)
    old = truth.contents(site.folder)
    site.control.replace(uid, hidden=False, slices=slices)
    site.wrong(Fault("path_name", HASHED, uid))
    assert [r.status for r in site.run()] == ["quarantined"]
    kept = truth.contents(site.folder)
    assert kept.files == old.files and kept.instances == old.instances
    assert kept.receipts[uid]["Status"] == "complete"
    assert "could not be fetched" in kept.receipts[uid]["Reason"]
    site.wrong(Fault("missing_file", HASHED, uid, fraction=0.5))
    assert [r.status for r in site.run()] == ["complete"]
    site.expect_true()


def test_a_series_that_moved_to_another_patient_has_one_place(site: MirroredArchive) -> None:
    """Its files would else lie under both, as if there were two."""
    site.run()
    uid = site.uid(SLICES)
    site.control.edit(uid, PatientID="Another one")
    site.control.replace(uid, hidden=False)
    assert [r.status for r in site.run()] == ["complete"]
    site.expect_true()


# --- digests that the archive does not hold


class _WithoutDigests:
    """Image files without the digests of some."""

    def __init__(self, store: ImageStore, without: Callable[[str], bool]) -> None:
        self._store = store
        self._without = without

    def instances(self, series_uid: str) -> Sequence[StoredInstance]:
        return self._store.instances(series_uid)

    def read(self, series_uid: str, sop_instance_uid: str) -> bytes:
        return self._store.read(series_uid, sop_instance_uid)

    def md5(self, series_uid: str, sop_instance_uid: str) -> str | None:
        return None if self._without(sop_instance_uid) else self._store.md5(series_uid, sop_instance_uid)


@pytest.fixture(params=["v2", "v4"])
def undigested(request: pytest.FixtureRequest, demo: Catalog, place: Place) -> Iterator[MirroredArchive]:
    """An archive that holds no digest of one instance of one series."""
    store = demo.images
    assert store is not None
    with mirrored_archive(demo, place / "lake") as plain:
        uid = plain.uid(SLICES)
    gap = store.instances(uid)[SLICES // 2].sop_instance_uid
    catalog = replace(demo, images=_WithoutDigests(store, lambda sop: sop == gap))
    with mirrored_archive(catalog, place / "lake", proofs={uid: "count+size"}, api=request.param) as site:
        yield site


def _as_in_dialect(site: MirroredArchive, held: truth.Contents) -> truth.Contents:
    """Return what must be there; v4 keeps no time of a day."""
    receipts = dict(site.expected().receipts)
    if site.api == "v4":
        receipts = {uid: {**row, "TimeStamp": held.receipts[uid]["TimeStamp"]} for uid, row in receipts.items()}
    return replace(site.expected(), receipts=receipts)


def test_a_series_without_a_digest_is_proven_by_count_and_size(undigested: MirroredArchive) -> None:
    site, (uid,) = undigested, undigested.proofs
    site.run()
    # One request more. On v4 getImage stops before the gap: what is behind it comes one by one.
    assert (site.asked(HASHED, uid), site.asked("getImage", uid)) == (1, 1)
    assert site.asked("getM5HashForImage") + site.asked("getMD5HashForImage") == 0
    assert (site.asked("getSingleImage", uid) > 0) == (site.api == "v4")
    held = truth.contents(site.folder)
    assert held == _as_in_dialect(site, held)
    assert truth.leftovers(site.folder) == []
    assert {u for u, proof in truth.column(site.folder, "Proof").items() if proof != "md5+count+size"} == {uid}


@pytest.mark.parametrize("kind", ["lost_file", "cut_file", "short_file", "missing_file", "flip"])
@pytest.mark.parametrize("fraction", [0.3, 0.6, 0.85])
@pytest.mark.parametrize("undigested", ["v2"], indirect=True)
def test_a_series_without_a_digest_is_mended_too(undigested: MirroredArchive, kind: str, fraction: float) -> None:
    site, (uid,) = undigested, undigested.proofs
    site.wrong(Fault(kind, "getImage", uid, fraction=fraction, times=1))
    site.run_until_whole((), most=2)
    site.expect_true()


@pytest.mark.parametrize("undigested", ["v2"], indirect=True)
def test_without_a_digest_another_size_is_not_taken(undigested: MirroredArchive) -> None:
    site, (uid,) = undigested, undigested.proofs
    size = site.expected().receipts[uid]["FileSize"]
    site.control.edit(uid, FileSize=size + 1)
    receipts = {r.wanted.SeriesInstanceUID: r for r in site.run()}
    assert receipts[uid].status == "quarantined"
    assert f"{size} bytes" in str(receipts[uid].reason)
    assert truth.contents(site.folder).files == site.expected().without(uid).files
    site.control.edit(uid, FileSize=size)
    site.run()
    site.expect_true()


@pytest.mark.parametrize(
    "fault",
    [Fault("status", status=403), Fault("status", status=500), Fault("html"), Fault("empty")],
    ids=["403", "500", "html", "empty"],
)
@pytest.mark.parametrize("undigested", ["v2"], indirect=True)
def test_the_tree_of_digests_is_a_hint_only(undigested: MirroredArchive, fault: Fault) -> None:
    """Whether a guest may ask getMD5Hierarchy is not known of every server."""
    undigested.wrong(replace(fault, endpoint="getMD5Hierarchy"))
    undigested.run()
    undigested.expect_true()


def test_an_archive_without_any_digest(demo: Catalog, place: Place) -> None:
    assert demo.images is not None
    catalog = replace(demo, images=_WithoutDigests(demo.images, lambda sop: True))
    with mirrored_archive(catalog, place / "lake") as site:
        site.proofs = dict.fromkeys(truth.facts_of(site.archive, site.collections), "count+size")
        site.run()
        site.expect_true()


# --- an archive that contradicts itself


@pytest.mark.parametrize(
    "fault",
    [Fault("status", HASHED, status=500), Fault("cut", HASHED, fraction=0.9), Fault("garbage", LISTED)],
    ids=["500", "cut", "garbage"],
)
def test_one_series_whose_calls_fail_holds_up_no_other(site: MirroredArchive, fault: Fault) -> None:
    """A 500 is also how the server says that something is not on its disk; a proxy may cut what takes long."""
    site.collections = ("TCGA-DEMO",)
    uid = max(truth.facts_of(site.archive, site.collections).items(), key=lambda item: item[1]["FileSize"])[0]
    if fault.endpoint == LISTED:
        site.state_no_counts(uid)
    site.wrong(replace(fault, series=uid))
    # There are two batches, and a batch that fails ends the run.
    for _ in range(2):
        with pytest.raises(ArchiveError, match=uid):
            site.run(streams=1)
    assert truth.finished(site.folder, site.archive, site.collections) == set(site.expected().receipts) - {uid}
    assert truth.contents(site.folder).files == site.expected().without(uid).files
    site.wrong()
    site.run()
    site.expect_true()


@pytest.mark.parametrize("change", [{"ImageCount": 15}, {"ImageCount": 13}], ids=str)
def test_an_archive_that_counts_wrongly_is_not_believed(site: MirroredArchive, change: dict[str, int]) -> None:
    uid = site.uid(SLICES)
    calm = site.expected()
    site.control.edit(uid, **change)
    receipts = {r.wanted.SeriesInstanceUID: r for r in site.run()}
    assert (receipts[uid].status, receipts[uid].attempts) == ("quarantined", 3)
    assert f"getSeries counts {change['ImageCount']} instances" in str(receipts[uid].reason)
    assert truth.contents(site.folder).files == calm.without(uid).files
    site.control.edit(uid, ImageCount=SLICES)
    site.run()
    site.expect_true()


def test_an_image_that_is_not_on_the_servers_disk(site: MirroredArchive) -> None:
    uid = site.uid(SLICES)
    site.wrong(Fault("missing_file", HASHED, uid, fraction=0.7), Fault("status", "getSingleImage", uid, status=500))
    receipts = {r.wanted.SeriesInstanceUID: r for r in site.run()}
    assert receipts[uid].status == "quarantined"
    assert "cannot send it on its own" in str(receipts[uid].reason)
    assert truth.contents(site.folder).files == site.expected().without(uid).files
    assert truth.leftovers(site.folder) == []
    site.wrong()
    site.run()
    site.expect_true()
