"""Tokens that run out, refusals, broken and silent connections, an archive that is down: the lake comes out whole."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from starlette.types import ASGIApp

from nbia_pipeline.archive import ArchiveError, ArchiveUnreachable, BadAnswer
from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.embedded.control.fault import Fault
from nbia_pipeline.embedded.server.app import create_app
from nbia_pipeline.embedded.server.fault_injection import FaultedRequest
from nbia_pipeline.embedded.server.run import make_server
from nbia_pipeline_tests.helpers import truth
from nbia_pipeline_tests.helpers.archives import FAST
from nbia_pipeline_tests.helpers.faults import Faults, custom, pass_on
from nbia_pipeline_tests.helpers.mirrored_archive import MirroredArchive
from nbia_pipeline_tests.helpers.places import Place

pytestmark = pytest.mark.slow

HASHED = "getImageWithMD5Hash"
LISTED = "getSOPInstanceUIDs"
SLICES = 14

# Long enough for an answer on a busy machine.
IMPATIENT = replace(FAST, read_timeout=1.0)


@pytest.mark.parametrize("endpoint", [HASHED, LISTED])
@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", status=401, times=1),
        Fault("status", status=429, retry_after="1", times=2),
        Fault("status", status=500, times=2),
        Fault("status", status=502, times=2),
        Fault("status", status=503, times=2),
        Fault("drop", times=2),
        Fault("cut", fraction=0.0, times=2),
        Fault("cut", fraction=0.5, times=2),
        Fault("cut", fraction=0.99, times=2),
    ],
    ids=lambda fault: f"{fault.kind} {fault.status if fault.kind == 'status' else fault.fraction}",
)
def test_what_passes_is_waited_for(site: MirroredArchive, fault: Fault, endpoint: str) -> None:
    uid = site.uid(SLICES)
    if endpoint == LISTED:
        site.state_no_counts(uid)
    site.wrong(replace(fault, endpoint=endpoint, series=uid))
    site.run()
    assert fault.times is not None
    assert site.asked(endpoint, uid) == 1 + fault.times
    # It is the connection, not the series: none of its attempts is used up.
    assert truth.column(site.folder, "Attempts")[uid] == 1
    site.expect_true()


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.99])
def test_a_reset_within_the_body_is_no_end(site: MirroredArchive, fraction: float) -> None:
    site.around.inject(HASHED, _reset(fraction), times=2)
    site.run()
    assert site.asked(HASHED) == 5 + 2
    site.expect_true()


def _reset(fraction: float) -> Fault:
    """Send a part of the true answer, then reset the connection."""

    async def act(request: FaultedRequest) -> None:
        start, body = await request.true_answer()
        await request.answer(start, body[: int(len(body) * fraction)], more=True)
        await asyncio.sleep(0.05)  # for what was sent to be on its way
        await request.hang_up(at_once=True)

    return custom(act)


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.99])
def test_silence_is_not_waited_out(site: MirroredArchive, fraction: float) -> None:
    site.options = IMPATIENT
    site.state_no_counts()
    site.wrong(Fault("stall", HASHED, fraction=fraction, times=1), Fault("stall", LISTED, fraction=fraction, times=1))
    site.run()
    assert (site.asked(HASHED), site.asked(LISTED)) == (5 + 1, 5 + 1)
    site.expect_true()


def test_slowness_is_no_silence(site: MirroredArchive) -> None:
    """A pause shorter than the time-out costs nothing, however long the whole takes."""
    site.options = IMPATIENT
    site.wrong(Fault("stall", HASHED, fraction=0.5, seconds=0.2))
    site.run()
    assert site.asked(HASHED) == 5
    site.expect_true()


# --- tokens


@pytest.mark.parametrize(("endpoint", "calls"), [(HASHED, 5), (LISTED, 5), ("getSeries", 1)])
def test_tokens_run_out_between_series(site: MirroredArchive, endpoint: str, calls: int) -> None:
    # A list swallows the refusal, a download does not: either is asked for again, with another token.
    if endpoint == LISTED:
        site.state_no_counts()
    site.around.inject(endpoint, Fault("expire_tokens"), pass_on(), times=calls)
    site.run(streams=1)
    assert site.asked(endpoint) == 2 * calls
    assert len(site.around.calls("token")) == 1 + calls
    site.expect_true()


@pytest.mark.parametrize("whole", [True, False], ids=["the stream ends well", "the stream breaks"])
def test_tokens_run_out_within_a_stream(site: MirroredArchive, whole: bool) -> None:
    async def act(request: FaultedRequest) -> None:
        start, body = await request.true_answer()
        await request.answer(start, body[: len(body) // 2], more=True)
        request.control.expire_tokens()
        if whole:
            await request.send({"type": "http.response.body", "body": body[len(body) // 2 :]})

    # What comes next, another stream or the one that broke, is asked for with the dead token first.
    site.around.inject(HASHED, *([custom(act), pass_on()] if whole else [custom(act), pass_on(), pass_on()]), times=5)
    site.run(streams=1)
    assert site.asked(HASHED) == (5 + 4 if whole else 15)
    assert len(site.around.calls("token")) == 1 + (4 if whole else 5)
    site.expect_true()


# --- the archive is down


@contextlib.contextmanager
def _served(app: ASGIApp, port: int = 0) -> Iterator[int]:
    """Serve `app` at a port; until then, and afterwards, connections to it are refused."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        server = make_server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.005)
            yield int(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()


def _site_at(port: int, around: Faults, folder: Place) -> MirroredArchive:
    return MirroredArchive(f"http://127.0.0.1:{port}/nbia-api", around.app.state.archive, around, folder)  # type: ignore[attr-defined]


def test_an_archive_that_is_down_ends_the_run_and_costs_nothing(demo: Catalog, place: Place) -> None:
    around = Faults(create_app(demo))
    with _served(around) as port:
        site = _site_at(port, around, place / "lake")
        site.wrong(Fault("drop", HASHED, skip=2))
        with pytest.raises(ArchiveUnreachable):
            site.run(streams=1)
    done = truth.finished(site.folder, site.archive, site.collections)
    assert 0 < len(done) < 5
    with pytest.raises(ArchiveUnreachable, match="refused"):
        site.run()
    assert truth.finished(site.folder, site.archive, site.collections) == done
    site.wrong()
    with _served(around, port):
        assert len(site.run()) == 5 - len(done)
        site.expect_true()


def test_an_archive_that_comes_back_in_time_ends_no_run(demo: Catalog, place: Place) -> None:
    around = Faults(create_app(demo))
    runs: list[object] = []
    with _served(around) as port:
        site = _site_at(port, around, place / "lake")
    site.options = replace(FAST, tries=200, backoff=0.02)
    thread = threading.Thread(target=lambda: runs.append(site.run()))
    thread.start()
    time.sleep(0.2)
    assert thread.is_alive() and not around.seen
    with _served(around, port):
        thread.join(30)
        assert runs
        site.expect_true()


# --- answers of another kind, for good


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault("html", LISTED), BadAnswer),
        (Fault("garbage", LISTED), BadAnswer),
        (Fault("status", status=503), ArchiveUnreachable),
        (Fault("cut", HASHED, fraction=0.5), ArchiveUnreachable),
    ],
    ids=["html", "garbage", "503", "cut"],
)
def test_an_archive_that_is_out_of_its_mind_ends_the_run(
    site: MirroredArchive, fault: Fault, error: type[Exception]
) -> None:
    site.state_no_counts()
    site.wrong(fault)
    with pytest.raises(error):
        site.run()
    site.expect_nothing_wrong()
    assert truth.contents(site.folder).files == {}
    site.wrong()
    site.run()
    site.expect_true()


@pytest.mark.parametrize("kind", ["html", "empty", "garbage", "end_early"])
@pytest.mark.parametrize("endpoint", ["getSeries", LISTED])
def test_a_list_that_is_none_is_not_believed(site: MirroredArchive, endpoint: str, kind: str) -> None:
    site.state_no_counts()
    site.wrong(Fault(kind, endpoint, times=1))
    site.run_until_whole((ArchiveError,), most=2)
    assert site.asked(endpoint) > 1
    site.expect_true()


# --- all together


@pytest.mark.parametrize("seed", range(4))
def test_a_storm(site: MirroredArchive, seed: int) -> None:
    site.collections = ("HeadNeckMix", "QIN_Breast.v2")
    kinds = "drop cut end_early missing_file cut_file short_file lost_file no_hashes wrong_hash".split()
    storm = [Fault(kind, probability=0.05) for kind in [*kinds, "expire_tokens", "html", "garbage"]]
    # A list in which one bit is another may still be a list, of another patient: nothing can tell.
    storm.append(Fault("flip", "getImageWithMD5Hash", probability=0.05))
    # A digest that is cut is a shorter digest: of a series it would make the proof weaker, and nothing wrong.
    calm = replace(pass_on(), endpoint="getMD5Hierarchy")
    site.wrong(
        calm, *storm, *(Fault("status", status=s, probability=0.03) for s in (401, 429, 500, 502, 503)), seed=seed
    )
    site.run_until_whole((ArchiveError,), most=40)
    site.expect_true()
