"""No host gets more requests than it can handle: how many are in flight, over all threads of a process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from nbia_pipeline.archive import ArchiveError, ArchiveUnreachable, ClientOptions, Limiter, NbiaClient, rate_limit
from nbia_pipeline.archive.rate_limit import FIRST_LIMIT, MAX_IN_FLIGHT, limiter_of
from nbia_pipeline.archive.transport import Session
from nbia_pipeline.connect import connect
from nbia_pipeline.defs.resources import NbiaResource
from nbia_pipeline.settings import Settings, SettingsError
from nbia_pipeline_tests.helpers.archives import FAST, Serve, TestArchive
from nbia_pipeline_tests.helpers.faults import Fault, Faults, answer, cut, silence

pytestmark = pytest.mark.slow


@dataclass
class Time:
    """A clock that only sleep moves."""

    now: float = 100.0
    slept: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def limiter(self, most: int, grow_after: int = 3, bwlimit: float | None = None) -> Limiter:
        return Limiter(most, bwlimit, grow_after=grow_after, clock=lambda: self.now, sleep=self.sleep)


@dataclass
class Crowd:
    """An archive that counts how many requests it holds at a time; each takes a while."""

    seconds: float = 0.02
    now: int = 0
    most: int = 0
    requests: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.requests += 1
        self.now += 1
        self.most = max(self.most, self.now)
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"[", "more_body": True})
        await asyncio.sleep(self.seconds)  # while the body is on its way
        self.now -= 1
        await send({"type": "http.response.body", "body": b"]"})


def ask_often(url: str, calls: int = 40, threads: int = 20, in_flight: int = 8, clients: int = 1) -> None:
    """Ask from many threads, by one client or by several."""
    made = [NbiaClient(url, api="v4", options=replace(FAST, max_in_flight=in_flight)) for _ in range(clients)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda n: made[n % clients].collection_values(), range(calls)))


# --- what the server sees


@pytest.mark.parametrize(("in_flight", "clients"), [(1, 1), (3, 1), (8, 1), (4, 5)])
def test_no_more_requests_are_in_flight_than_allowed(serve: Serve, in_flight: int, clients: int) -> None:
    crowd = Crowd(seconds=0.03)
    ask_often(serve(crowd), in_flight=in_flight, clients=clients)
    assert max(1, in_flight - 1) <= crowd.most <= in_flight
    assert crowd.requests == 40


def test_sixteen_is_the_default_and_eight_the_beginning() -> None:
    assert (ClientOptions().max_in_flight, MAX_IN_FLIGHT, FIRST_LIMIT, Limiter().limit) == (16, 16, 8, 8)
    assert Settings().max_in_flight == NbiaResource().max_in_flight == 16


def test_the_setting_is_the_maximum_of_every_client(archive: TestArchive) -> None:
    fields: dict[str, Any] = {"archive": archive.url, "max_in_flight": 5}
    with NbiaResource(**fields).client() as client, connect(Settings(**fields), FAST) as other:
        assert client.max_in_flight == other.max_in_flight == 5
    with pytest.raises(SettingsError, match=r"^NBIA_MAX_IN_FLIGHT is 0: set it to 1 or more"):
        Settings.from_env({"NBIA_MAX_IN_FLIGHT": "0"})


def test_a_login_counts_as_well(serve: Serve) -> None:
    url = serve(Faults(Crowd()))
    with pytest.raises(ArchiveError), NbiaClient(url, options=replace(FAST, max_in_flight=1)) as client:
        client.collection_values()
    assert client._session.limiter.in_flight == 0


def _limit_of(url: str) -> int:
    return limiter_of(url, 8).limit


@pytest.mark.parametrize("fault", [answer(429), answer(503), answer(504), silence()], ids=["429", "503", "504", "mute"])
def test_an_archive_that_has_too_much_to_do_is_asked_half_as_much(serve: Serve, fault: Fault) -> None:
    crowd = Crowd()
    faults = Faults(crowd)
    url = serve(faults)
    faults.inject("getCollectionValues", fault, times=3)
    options = replace(FAST, tries=9, read_timeout=0.3)
    with NbiaClient(url, api="v4", options=options) as client:
        client.collection_values()
    assert _limit_of(url) == 1
    ask_often(url, calls=12)
    assert crowd.most == 1


@pytest.mark.parametrize("fault", [answer(500), answer(502), answer(400), answer(404), cut(1)])
def test_other_mishaps_change_nothing(serve: Serve, fault: Fault) -> None:
    faults = Faults(Crowd())
    url = serve(faults)
    faults.inject("getCollectionValues", fault, times=2)
    with NbiaClient(url, api="v4", options=FAST) as client:
        for _ in range(2):
            try:
                client.collection_values()
            except ArchiveError:
                continue
    assert _limit_of(url) == 8


def test_a_busy_token_endpoint_counts_too(serve: Serve, archive: TestArchive) -> None:
    faults = Faults(archive.faults)
    url = serve(faults)
    faults.inject("token", answer(503))
    with NbiaClient(url, options=FAST) as client:
        assert client.collection_values() != []
    assert _limit_of(url) == 4


def test_the_limit_grows_back_one_by_one(serve: Serve) -> None:
    faults = Faults(Crowd(seconds=0))
    url = serve(faults)
    faults.inject("getCollectionValues", answer(503))
    with NbiaClient(url, api="v4", options=FAST) as client:
        client.collection_values()
        limits = [4]
        for _ in range(110):
            client.collection_values()
            if _limit_of(url) != limits[-1]:
                limits.append(_limit_of(url))
    assert limits == [4, 5, 6, 7, 8]


def test_retry_after_holds_back_every_thread(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = Crowd(seconds=0)
    faults = Faults(crowd)
    url = serve(faults)
    faults.inject("getCollectionValues", answer(429, retry_after="1"))
    options = replace(FAST, max_backoff=5, max_in_flight=4)
    clock = Time()
    monkeypatch.setitem(rate_limit._limiters, urlsplit(url).netloc, clock.limiter(4))
    one, other = (NbiaClient(url, api="v4", options=options) for _ in range(2))

    def meanwhile(seconds: float) -> None:
        """While the one waits for its second try, the other asks for the first time."""
        other.collection_values()

    monkeypatch.setattr("nbia_pipeline.archive.transport.stopping.sleep", meanwhile)
    one.collection_values()
    assert clock.slept == [1]
    assert crowd.requests == 2


def test_retry_after_beyond_the_maximum_is_cut(serve: Serve) -> None:
    faults = Faults(Crowd(seconds=0))
    url = serve(faults)
    faults.inject("getCollectionValues", answer(503, retry_after="100000"))
    with NbiaClient(url, api="v4", options=FAST) as client:
        assert client.collection_values() == []


def test_a_broken_download_gives_its_slot_back(archive: TestArchive) -> None:
    archive.faults.inject("getSOPInstanceUIDs", cut(5), times=9)
    with archive.client() as client:
        with pytest.raises(ArchiveUnreachable):
            uid = client.series("TCGA-DEMO")["SeriesInstanceUID"][0].as_py()
            client.sop_instance_uids(uid)
        assert client._session.limiter.in_flight == 0


def test_a_reader_that_calls_the_client_does_not_wait_for_itself(archive: TestArchive) -> None:
    with archive.client(options=replace(FAST, max_in_flight=1)) as client:
        uid = client.series("TCGA-DEMO")["SeriesInstanceUID"][0].as_py()

        def read(chunks: Iterator[bytes]) -> list[int]:
            limiter = client._session.limiter
            listed = len(client.sop_instance_uids(uid))
            before, zipped = limiter.in_flight, b"".join(chunks)
            return [listed, before, zipped[:2] == b"PK", limiter.in_flight]

        assert client.image_with_md5(uid, read) == [18, 1, True, 0]
        assert client._session.limiter.in_flight == 0


def test_metadata_one_by_one_uses_what_is_allowed(serve: Serve) -> None:
    crowd = Crowd()
    faults = Faults(crowd)
    faults.inject("getSeriesMetadata2", answer(500, b"HTTP 404 Not Found"))
    faults.inject("token", answer(200, b'{"access_token":"a","expires_in":900}'))
    with NbiaClient(serve(faults), options=replace(FAST, max_in_flight=11)) as client:
        client.series_metadata([f"1.{n}" for n in range(60)])
    assert 8 < crowd.most <= 11


# --- the limiter by itself


def test_hosts_are_limited_apart() -> None:
    one, other = limiter_of("https://a.example/nbia-api", 3), limiter_of("https://b.example/nbia-api", 3)
    assert one is not other
    assert limiter_of("https://user:secret@A.example/other", 3) is one
    assert limiter_of("https://a.example:8443/", 3) is not one


def test_the_child_of_a_fork_starts_afresh() -> None:
    parent = limiter_of("https://e.example/", 2)
    with parent.slot():
        rate_limit._forget_inherited()
        assert limiter_of("https://e.example/", 2).in_flight == 0


def test_the_last_client_sets_the_maximum() -> None:
    limiter = limiter_of("https://c.example/", 8)
    assert limiter_of("https://c.example/", 2).limit == 2
    assert limiter_of("https://c.example/", 6).limit == 6
    limiter.refused(0)
    assert limiter_of("https://c.example/", 20).limit == 3
    assert limiter_of("https://c.example/", 2).limit == 2
    assert limiter.max_in_flight == 2


@pytest.mark.parametrize("most", [0, -1])
def test_a_maximum_of_nothing_is_refused(most: int) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        Limiter(most)
    with pytest.raises(ValueError, match="must be at least 1"):
        Session("http://d.example/nbia-api", None, options=ClientOptions(max_in_flight=most))


def test_requests_that_were_refused_together_halve_the_limit_once() -> None:
    limiter = Time().limiter(8)
    for _ in range(8):
        limiter.refused(0)
    assert limiter.limit == 4
    limiter.refused(1)
    assert limiter.limit == 2


def test_a_refusal_begins_the_count_of_good_answers_again() -> None:
    limiter = Time().limiter(4, grow_after=3)
    limiter.refused(0)
    limiter.answered()
    limiter.answered()
    limiter.refused(1)
    limiter.answered()
    limiter.answered()
    assert limiter.limit == 1
    limiter.answered()
    assert limiter.limit == 2


def test_nothing_begins_before_the_time_that_the_host_names() -> None:
    clock = Time()
    limiter = clock.limiter(2)
    limiter.refused(0, 30)
    limiter.refused(0, 7)  # the later time counts
    with limiter.slot():
        assert clock.now == 130
    assert clock.slept == [30]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("answered"), st.just(0.0)),
        st.tuples(st.just("refused now"), st.floats(0, 50)),
        st.tuples(st.just("refused late"), st.floats(0, 50)),
        st.tuples(st.just("call"), st.just(0.0)),
        st.tuples(st.just("allow"), st.floats(1, 20)),
    ),
    max_size=60,
)


@given(most=st.integers(1, 20), grow_after=st.integers(1, 5), steps=steps)
def test_the_limit_stays_between_one_and_the_maximum(
    most: int, grow_after: int, steps: list[tuple[str, float]]
) -> None:
    clock = Time()
    limiter = clock.limiter(most, grow_after)
    refusals, quiet_until = 0, clock.now
    for step, number in steps:
        before = limiter.limit
        if step == "answered":
            limiter.answered()
            assert before <= limiter.limit <= before + 1
        elif step == "refused now":
            limiter.refused(refusals, number)
            refusals += 1
            quiet_until = max(quiet_until, clock.now + number)
            assert limiter.limit == max(1, before // 2)
        elif step == "refused late":
            limiter.refused(refusals - 1, None)
            assert limiter.limit == before
        elif step == "allow":
            limiter.allow(int(number))
        else:
            with limiter.slot() as slot:
                assert slot.refusals == refusals
                assert limiter.in_flight == 1
                assert clock.now >= quiet_until
        assert 1 <= limiter.limit <= limiter.max_in_flight
        assert limiter.in_flight == 0
    for _ in range(limiter.max_in_flight * grow_after):
        limiter.answered()
    assert limiter.limit == min(limiter.max_in_flight, FIRST_LIMIT)


@settings(max_examples=20, deadline=None)
@given(most=st.integers(1, 6), refused=st.sets(st.integers(0, 59)))
def test_threads_never_hold_more_slots_than_the_limit_at_their_start(most: int, refused: set[int]) -> None:
    limiter = Limiter(most, grow_after=2)
    seen: list[tuple[int, int]] = []

    def call(number: int) -> None:
        with limiter.slot() as slot:
            seen.append((limiter.in_flight, limiter.max_in_flight))
            if number in refused:
                limiter.refused(slot.refusals)
            else:
                limiter.answered()

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(call, range(60)))
    assert len(seen) == 60
    assert all(1 <= held <= allowed for held, allowed in seen)
    assert limiter.in_flight == 0


# --- bytes per second


def test_all_streams_together_get_the_bytes_per_second_that_are_allowed() -> None:
    time = Time()
    limiter = time.limiter(2, bwlimit=1_000_000)
    assert limiter.piece_bytes == 500_000
    with limiter.slot() as one:
        for _ in range(5):
            one.received(500_000)
            limiter.pace(500_000)  # another stream
    assert time.now - 100 == pytest.approx(4.0)  # 5 MB, of which one second's came at once
    assert max(time.slept) <= 1.0, "no stream waits for long: the server would close its connection"
    time.now += 60
    with limiter.slot() as one:
        one.received(1_000_000)
        assert time.now == pytest.approx(164), "a pause gives a second's bytes"
        one.received(3_000_000)
    assert time.now - 164 == pytest.approx(3.0)


def test_without_a_limit_nothing_waits() -> None:
    time = Time()
    limiter = time.limiter(2)
    with limiter.slot() as one:
        one.received(10**12)
    assert (time.slept, limiter.piece_bytes > 1 << 60) == ([], True)


def test_a_slow_line_is_no_reason_for_fewer_requests() -> None:
    time = Time()
    limiter = time.limiter(16, bwlimit=1_000_000)
    for _ in range(100):
        with limiter.slot("image") as slot:
            slot.answer_begins()
            slot.received(100_000)
            slot.received(0)
        limiter.answered()
    assert limiter.limit >= FIRST_LIMIT


def test_what_arrives_of_a_series_is_limited(archive: TestArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    time, pieces = Time(), list[int]()
    limiter = time.limiter(4, bwlimit=100_000)
    monkeypatch.setattr(limiter, "note", pieces.append)
    monkeypatch.setitem(rate_limit._limiters, urlsplit(archive.url).netloc, limiter)
    fields: dict[str, Any] = {"archive": archive.url, "bwlimit": "100kB/s", "max_in_flight": 4}
    with connect(Settings(**fields)) as client:
        uid = client.series(collection="QIN_Breast.v2")["SeriesInstanceUID"][0].as_py()
        size = client.image_with_md5(uid, lambda chunks: sum(map(len, chunks)))
    assert size > 200_000
    assert max(pieces) <= 25_000
    assert sum(time.slept) == pytest.approx(sum(pieces) / 100_000 - 1, abs=0.1)


def test_the_settings_name_the_bytes_per_second(archive: TestArchive) -> None:
    assert [Settings(bwlimit=text).bytes_per_second for text in ("50MB", "1.5 GB/s", None)] == [
        50 * 10**6,
        15 * 10**8,
        None,
    ]
    with pytest.raises(SettingsError, match=r"^NBIA_BWLIMIT is 'fast': set it to bytes per second, such as 50MB$"):
        Settings.from_env({"NBIA_BWLIMIT": "fast"})
    with NbiaResource(archive=archive.url, bwlimit="7MB").client(ClientOptions(tries=1)) as client:
        assert client._session.options.bwlimit == 7_000_000
