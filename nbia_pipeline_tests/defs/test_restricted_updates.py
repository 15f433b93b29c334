"""Ticks on v4 with an account: getUpdatedSeries shows what the guest may see, so the other collections are listed."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from datetime import date
from typing import Any

import pytest

from nbia_pipeline.changes import restricted
from nbia_pipeline.defs.sensors import TICK_SECONDS, within
from nbia_pipeline.embedded.control.fault import Fault
from nbia_pipeline.embedded.control.operations import Operations
from nbia_pipeline.embedded.demo.catalog import MEMBER, MEMBER_PASSWORD
from nbia_pipeline_tests.helpers.expected import RESTRICTED
from nbia_pipeline_tests.helpers.faults import NO_SUCH_ENDPOINT
from nbia_pipeline_tests.helpers.ticker import MONDAY, Make, Ticker, asked, day

pytestmark = pytest.mark.slow

SENSOR = "nbia_updated_series"
COUNTS, VALUES = "getCollectionValuesAndCounts", "getCollectionValues"
PUBLIC = ("nbia_update", "TCGA-DEMO")
OWN = ("nbia_tables", RESTRICTED)
NOT_SEEN = f"cannot see the releases of {RESTRICTED}, because getUpdatedSeries shows what the guest may see"
ACCOUNT = {"username": MEMBER, "password": MEMBER_PASSWORD}


def started(make: Make, **settings: object) -> Ticker:
    """Return a sensor that was turned on on Monday, and knows the restricted collection."""
    ticker = make(**{"api": "v4", **ACCOUNT, **settings})
    ticker.register(RESTRICTED)
    assert ticker.tick(SENSOR, MONDAY).run_requests == []
    return ticker


def requests(control: Operations) -> Counter[str]:
    return Counter(r["endpoint"] for r in control.requests(clear=True))


def test_a_release_in_a_restricted_collection_asks_for_one_run(make: Make, control: Operations) -> None:
    ticker = started(make)
    control.add_series(RESTRICTED, released=date(2026, 3, 10))
    requests(control)
    assert asked(ticker.tick(SENSOR, day(1))) == [OWN]
    made = requests(control)
    assert (made[COUNTS], made["getSeries"]) == (2, 1)
    second = ticker.tick(SENSOR, day(1.1))
    assert second.run_requests == []
    assert "reconcile" not in second.skip_message
    control.add_series(RESTRICTED, released=date(2026, 3, 10))
    control.add_series("TCGA-DEMO", released=date(2026, 3, 10))
    assert sorted(asked(ticker.tick(SENSOR, day(1.2)))) == sorted([OWN, PUBLIC])
    assert ticker.tick(SENSOR, day(1.3)).run_requests == []


@pytest.mark.parametrize(("api", "account", "found"), [("v4", {}, []), ("v2", {}, []), ("v2", ACCOUNT, [OWN])])
def test_nobody_else_lists_collections(
    make: Make, control: Operations, api: str, account: dict[str, str], found: list[object]
) -> None:
    ticker = make(api=api, **account)
    ticker.register(RESTRICTED)
    ticker.tick(SENSOR, MONDAY)
    control.add_series(RESTRICTED, released=date(2026, 3, 10))
    requests(control)
    assert asked(ticker.tick(SENSOR, day(1))) == found
    made = requests(control)
    assert (made[COUNTS], made["getSeries"]) == (0, 0)


def test_a_collection_that_is_not_kept_is_neither_listed_nor_named(make: Make, control: Operations) -> None:
    ticker = started(make, collections=("TCGA-*",))
    control.add_series(RESTRICTED, released=date(2026, 3, 10))
    requests(control)
    tick = ticker.tick(SENSOR, day(1))
    assert tick.run_requests == []
    assert RESTRICTED not in tick.skip_message
    assert requests(control)["getSeries"] == 0


@pytest.mark.parametrize("bound", ["MOST_COLLECTIONS", "MOST_PATIENTS"])
def test_what_is_too_large_for_a_tick_is_named_and_not_taken_for_new_later(
    make: Make, control: Operations, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    control.add_series(RESTRICTED, released=date(2026, 3, 8))
    ticker = started(make)
    with monkeypatch.context() as patch:
        patch.setattr(restricted, bound, 0)
        control.add_series("TCGA-DEMO", released=date(2026, 3, 9))
        assert asked(ticker.tick(SENSOR, day(0.1))) == [PUBLIC]
        second = ticker.tick(SENSOR, day(0.2))
        assert second.run_requests == []
        assert NOT_SEEN in second.skip_message
    assert ticker.tick(SENSOR, day(0.3)).run_requests == [], "what was known before is not new"


FAILURES = {
    "500": Fault("status", status=500, endpoint="getSeries"),
    "html": Fault("html", endpoint="getSeries"),
    "busy": Fault("status", status=503, endpoint="getSeries"),
}


@pytest.mark.parametrize("what", FAILURES)
def test_a_listing_that_fails_costs_nothing_of_what_is_public(make: Make, control: Operations, what: str) -> None:
    ticker = started(make)
    control.add_series("TCGA-DEMO", released=date(2026, 3, 9))
    control.add_series(RESTRICTED, released=date(2026, 3, 9))
    control.faults(FAILURES[what])
    assert asked(ticker.tick(SENSOR, day(0.1))) == [PUBLIC]
    assert NOT_SEEN in ticker.tick(SENSOR, day(0.2)).skip_message
    control.faults()
    assert asked(ticker.tick(SENSOR, day(0.3))) == [OWN]


def test_an_archive_without_counts_is_compared_by_names(make: Make, control: Operations) -> None:
    ticker = started(make)
    control.add_series(RESTRICTED, released=date(2026, 3, 9))
    control.faults(Fault("answer", endpoint=COUNTS, status=500, body=NO_SUCH_ENDPOINT))
    requests(control)
    assert asked(ticker.tick(SENSOR, day(0.1))) == [OWN]
    assert requests(control)[VALUES] == 2


def test_an_archive_that_does_not_name_its_collections_says_so(make: Make, control: Operations) -> None:
    ticker = started(make)
    control.add_series("TCGA-DEMO", released=date(2026, 3, 9))
    control.faults(*(Fault("status", status=500, endpoint=endpoint) for endpoint in (COUNTS, VALUES)))
    assert asked(ticker.tick(SENSOR, day(0.1))) == [PUBLIC]
    words = "The collections that only this account may see could not be listed; the reconcile schedule"
    assert words in ticker.tick(SENSOR, day(0.2)).skip_message


def test_the_deadline_of_a_tick_leaves_out_the_restricted_collections_only(
    make: Make, control: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticker = started(make)
    control.add_series("TCGA-DEMO", released=date(2026, 3, 9))
    over, allowed = threading.Event(), []

    def short(seconds: float, ask: Callable[[], Any]) -> Any:
        allowed.append(seconds)
        return within(seconds if len(allowed) == 1 else 0.1, ask)

    monkeypatch.setattr("nbia_pipeline.defs.sensors.within", short)
    monkeypatch.setattr(restricted.RestrictedReleases, "look", lambda *_: over.wait())
    try:
        assert asked(ticker.tick(SENSOR, day(0.1))) == [PUBLIC]
    finally:
        over.set()
    assert allowed[0] == TICK_SECONDS > allowed[1]


class Counted:
    """A client that counts patients."""

    def __init__(self, **counts: int | None) -> None:
        self._counts = counts

    def collection_counts(self) -> dict[str, int | None]:
        return self._counts


def test_a_collection_that_the_guest_sees_in_part_is_restricted_too() -> None:
    member, guest = Counted(A=3, B=5, C=None, D=7), Counted(A=3, B=4, C=None)
    assert restricted._restricted(member, guest) == {"B": 5, "D": 7}  # type: ignore[arg-type]


def test_the_smallest_collections_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restricted, "MOST_PATIENTS", 10)
    assert list(restricted._within_bounds({"A": 9, "B": 1, "C": 2, "D": 7})) == ["B", "C", "D"]
    monkeypatch.setattr(restricted, "MOST_COLLECTIONS", 2)
    assert list(restricted._within_bounds({"A": 9, "B": 1, "C": 2, "D": 7})) == ["B", "C"]
