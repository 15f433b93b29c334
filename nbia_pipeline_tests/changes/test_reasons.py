"""Why a series is gone: hidden, moved, deleted or not permitted, in both dialects; or the archive does not say."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from nbia_pipeline import clock
from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.changes.feed import record_changes
from nbia_pipeline.changes.reasons import GONE, NOT_SERVED, UNKNOWN, Reasons
from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.embedded.control.fault import Fault
from nbia_pipeline.embedded.control.operations import Operations
from nbia_pipeline.embedded.demo.catalog import MEMBER, MEMBER_PASSWORD
from nbia_pipeline.embedded.server.app import create_app
from nbia_pipeline.lake import Lake
from nbia_pipeline.mirror.download import fetch_batch
from nbia_pipeline.mirror.engine import Mirror
from nbia_pipeline.mirror.series import WantedSeries
from nbia_pipeline.schema.status import KEPT, LISTED_AT, UNAVAILABLE
from nbia_pipeline.schema.tables import COLLECTIONS, IMAGE_SERIES, SERIES_CHANGES
from nbia_pipeline_tests.helpers.archives import FAST, TestArchive, serving
from nbia_pipeline_tests.helpers.expected import RESTRICTED, visible
from nbia_pipeline_tests.helpers.faults import NO_SUCH_ENDPOINT, NULL, Faults, answer, html
from nbia_pipeline_tests.helpers.places import Place
from nbia_pipeline_tests.helpers.tiny import tiny_catalog

QIN = "QIN_Breast.v2"
APIS = pytest.mark.parametrize("api", ["v2", "v4"])
UID = "SeriesInstanceUID"


def uids_of(demo: Catalog, *collections: str) -> list[str]:
    return [row[UID] for row in visible(demo, *collections)]


@pytest.fixture
def own(demo: Catalog) -> Iterator[tuple[str, Operations]]:
    """Address and control of an archive of one's own."""
    app = create_app(demo)
    with serving(app) as url:
        yield url, app.state.archive.control


@APIS
def test_the_archive_distinguishes_hidden_and_moved_series_from_those_that_are_gone(
    own: tuple[str, Operations], demo: Catalog, api: str
) -> None:
    url, control = own
    hidden, queued, unreviewed, deleted, shown = uids_of(demo, QIN)
    control.hide(hidden)
    control.hide(queued, 3)
    control.hide(unreviewed, 0)
    control.delete(deleted)
    (forbidden, *_) = uids_of(demo, RESTRICTED)
    with NbiaClient(url, api=api, options=FAST) as client:
        said = Reasons(client).of([hidden, queued, unreviewed, deleted, shown, forbidden, "9.9"])
    assert said == {
        hidden: "hidden (Visibility: Not Visible)",
        queued: "hidden (Visibility: To Be Deleted)",
        unreviewed: "hidden (Visibility: Not Yet Reviewed)",
        deleted: GONE,
        shown: "visible (Visibility: Visible) in collection 'QIN_Breast.v2'",
        forbidden: GONE,
        "9.9": GONE,
    }


@APIS
def test_an_account_learns_of_its_own_collections(archive: TestArchive, demo: Catalog, api: str) -> None:
    (uid, *_) = uids_of(demo, RESTRICTED)
    with archive.client(api=api, username=MEMBER, password=MEMBER_PASSWORD) as client:
        assert Reasons(client).of([uid]) == {uid: f"visible (Visibility: Visible) in collection {RESTRICTED!r}"}
        assert client.denied_series([uid, "9.9"]) == {"9.9"}
    assert archive.faults.calls("getDeniedSeries")[-1].query["userName"] == MEMBER
    with archive.client(api=api) as guest:
        assert guest.denied_series([uid, "9.9"]) == {uid, "9.9"}
    assert "userName" not in archive.faults.calls("getDeniedSeries")[-1].query


FAILURES = {
    "missing": answer(500, NO_SUCH_ENDPOINT),
    "failing": answer(500, NULL),
    "refused": answer(403),
    "not found": answer(404, b"Not Found"),
    "html": html(),
    "busy": answer(503),
}


@APIS
@pytest.mark.parametrize("how", FAILURES)
def test_a_call_that_fails_costs_the_reasons_and_is_not_made_again(
    archive: TestArchive, demo: Catalog, caplog: pytest.LogCaptureFixture, api: str, how: str
) -> None:
    (uid, *_) = uids_of(demo, QIN)
    archive.faults.inject("getSeriesQCInfo", FAILURES[how], times=9)
    with archive.client(api=api) as client:
        reasons = Reasons(client)
        assert reasons.of([uid, "9.9"]) == {uid: UNKNOWN, "9.9": NOT_SERVED}
        asked = archive.faults.count("getSeriesQCInfo")
        archive.faults.inject("getDeniedSeries", FAILURES[how], times=9)
        assert reasons.of([uid, "9.9"]) == {}
        asked_too = archive.faults.count("getDeniedSeries")
        assert reasons.of([uid]) == {}
    assert (archive.faults.count("getSeriesQCInfo"), archive.faults.count("getDeniedSeries")) == (asked, asked_too)
    warnings = [r.getMessage() for r in caplog.records if "does not say why" in r.getMessage()]
    assert [w.partition(" ")[0] for w in warnings] == ["getSeriesQCInfo", "getDeniedSeries"]


@APIS
def test_without_the_list_of_denied_series_the_state_is_enough(archive: TestArchive, demo: Catalog, api: str) -> None:
    (uid, *_) = uids_of(demo, QIN)
    archive.faults.inject("getDeniedSeries", answer(500, NO_SUCH_ENDPOINT))
    with archive.client(api=api) as client:
        assert Reasons(client).of([uid, "9.9"]) == {
            uid: f"visible (Visibility: Visible) in collection {QIN!r}",
            "9.9": GONE,
        }


@APIS
def test_many_series_are_asked_about_in_runs(archive: TestArchive, api: str) -> None:
    wanted = [f"9.{n}" for n in range(601)]
    with archive.client(api=api) as client:
        assert Reasons(client).of(wanted) == dict.fromkeys(wanted, GONE)
        assert client.series_states([]).num_rows == 0
        assert client.denied_series([]) == set()
        with pytest.raises(TypeError, match="pass a list"):
            client.denied_series("9.1")
    lists = [call.query["seriesList"].split(",") for call in archive.faults.calls("getDeniedSeries")]
    assert [len(uids) for uids in lists] == [50] * 12 + [1]
    assert [uid for uids in lists for uid in uids] == wanted
    # Empty answers to an account are asked for again; the guest of v4 has no token.
    assert archive.faults.count("getSeriesQCInfo") == (4 if api == "v2" else 2)


# --- into the feed and the receipts


class History:
    """A collection that is listed again and again, hours apart."""

    def __init__(self, url: str, lake: Lake, api: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.client = NbiaClient(url, api=api, options=FAST)
        self.lake = lake
        self._mirror = Mirror(self.client, lake)
        self._now = datetime(2026, 3, 1)  # noqa: DTZ001 - the tables state no zone
        monkeypatch.setattr(clock, "utc_now", lambda: self._now)

    def look(self, hours: float = 7) -> None:
        self._now += timedelta(hours=hours)
        self._mirror.update_tables(QIN)
        self._mirror.plan(QIN)  # what is wanted and has no receipt becomes pending

    def vanish(self, others: pa.Table) -> None:
        """List the collections, of which this is not one."""
        self._now += timedelta(hours=7)
        self.lake.write_table(COLLECTIONS, others, properties={LISTED_AT: self._now.isoformat(), KEPT: '["*"]'})
        record_changes(self.lake, QIN, reasons=Reasons(self.client).of)
        self._mirror.commit(QIN)

    def withdrawn(self) -> dict[str, Any]:
        rows = self.lake.read_table(SERIES_CHANGES, QIN).to_pylist()
        assert all(row["Reason"] is None for row in rows if row["Change"] != "withdrawn")
        return {row[UID]: row["Reason"] for row in rows if row["Change"] == "withdrawn"}

    def receipts(self, status: str) -> dict[str, Any]:
        rows = self.lake.read_table(IMAGE_SERIES, QIN).to_pylist()
        return {row[UID]: row["Reason"] for row in rows if row["Status"] == status}


@APIS
def test_reasons_go_into_the_feed_and_the_receipts_until_the_series_return(
    own: tuple[str, Operations], demo: Catalog, place: Place, monkeypatch: pytest.MonkeyPatch, api: str
) -> None:
    url, control = own
    hidden, deleted, *others = uids_of(demo, QIN)
    history = History(url, Lake(str(place / "lake")), api, monkeypatch)
    with history.client:
        history.look()
        control.hide(hidden)
        control.delete(deleted)
        control.requests(clear=True)
        history.look()
        assert "getSeriesQCInfo" not in {r["endpoint"] for r in control.requests()}, "nothing is confirmed yet"
        history.look()
        reasons = {hidden: "hidden (Visibility: Not Visible)", deleted: GONE}
        assert history.withdrawn() == reasons
        assert history.receipts("withdrawn") == reasons
        assert history.receipts("pending") == dict.fromkeys(others, "not fetched yet")
        control.requests(clear=True)
        history.look()
        assert "getSeriesQCInfo" not in {r["endpoint"] for r in control.requests()}, "asked once"
        control.show(hidden)
        history.look()
        assert history.receipts("pending") == dict.fromkeys((hidden, *others), "not fetched yet")
        assert history.withdrawn() == reasons, "the feed is append-only"


@APIS
def test_a_collection_that_is_restricted_is_not_permitted(
    own: tuple[str, Operations], demo: Catalog, place: Place, monkeypatch: pytest.MonkeyPatch, api: str
) -> None:
    url, control = own
    history = History(url, Lake(str(place / "lake")), api, monkeypatch)
    with history.client:
        history.look()
        control.add_collection(QIN, restricted=True)
        others = pa.Table.from_pylist([{"Collection": "TCGA-DEMO"}], schema=COLLECTIONS.schema)
        for _ in range(2):
            history.vanish(others)
    assert history.withdrawn() == history.receipts("withdrawn") == dict.fromkeys(uids_of(demo, QIN), GONE)


@APIS
def test_an_archive_that_does_not_say_why_fails_nothing(
    own: tuple[str, Operations], demo: Catalog, place: Place, monkeypatch: pytest.MonkeyPatch, api: str
) -> None:
    url, control = own
    (uid, *_) = uids_of(demo, QIN)
    history = History(url, Lake(str(place / "lake")), api, monkeypatch)
    with history.client:
        history.look()
        control.hide(uid)
        history.look()
        control.faults(*(Fault("status", status=500, endpoint=e) for e in ("getSeriesQCInfo", "getDeniedSeries")))
        history.look()
    assert history.withdrawn() == {uid: None}
    assert history.receipts("withdrawn") == {uid: "not fetched yet"}


@APIS
def test_a_refused_series_has_the_reason_in_its_receipt(place: Place, api: str) -> None:
    """2.2 of the tiny catalog is hidden, 4.1 restricted, 5.1 downloadable and not visible; 9.9 does not exist."""
    faults = Faults(create_app(tiny_catalog()))
    expected = {
        "2.2": "hidden (Visibility: Not Yet Reviewed): the archive refuses",
        "4.1": "deleted or not permitted: the archive refuses",
        "5.1": "visible (Visibility: Downloadable) in collection 'Hidden Set': the archive refuses",
        "9.9": "deleted or not permitted: the archive refuses",
    }
    lake = Lake(str(place / "lake"))
    wanted = [WantedSeries(uid, "1", "P", "Alpha Set", 3, 3000, None, None) for uid in expected]
    with serving(faults) as url, NbiaClient(url, api=api, options=FAST) as client:
        receipts = fetch_batch(client, lake, wanted)
    assert [r.status for r in receipts] == [UNAVAILABLE] * len(expected)
    for receipt in receipts:
        assert (receipt.reason or "").startswith(expected[receipt.wanted.SeriesInstanceUID])
