"""Answers that no archive would send: without an end, or a thousand times larger than they arrive.

As a process of its own, ``python -m nbia_pipeline_tests.helpers.hostile URL FOLDER KIND ...`` makes the call of each
kind as the product does, and prints what came of it, how long it took and how much memory at most, as JSON lines.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from nbia_pipeline.archive import ArchiveError, ClientOptions, NbiaClient
from nbia_pipeline.lake import Lake
from nbia_pipeline.mirror.annotations.extract import extract
from nbia_pipeline.mirror.download import fetch_series
from nbia_pipeline.mirror.series import WantedSeries
from nbia_pipeline.mirror.unpack import NotVerified, take_single
from nbia_pipeline_tests.helpers.hostile_kinds import HUGE, Kind, kinds

UID = "1.1"
MOST_SECONDS = 120
Call = Callable[[NbiaClient, Kind, Path], object]
PATIENCE = ClientOptions(connect_timeout=5, read_timeout=20, tries=2, backoff=0.01, max_backoff=0.01)


# --- what is asked for


def wanted(kind: Kind) -> WantedSeries:
    return WantedSeries(UID, "1", "P", "C", *kind.figures, None, None)


def fetched(client: NbiaClient, kind: Kind, folder: Path) -> object:
    receipt = fetch_series(client, Lake(str(folder)), wanted(kind))
    return f"{receipt.status}: {receipt.reason}"


def single(client: NbiaClient, kind: Kind, folder: Path) -> object:
    folder.mkdir(parents=True, exist_ok=True)
    return client.single_image(UID, "1.1.1", lambda chunks: take_single(chunks, folder, UID, "1.1.1", kind.figures[1]))


def annotated(client: NbiaClient, kind: Kind, folder: Path) -> object:
    folder.mkdir(parents=True, exist_ok=True)
    return client.dcm_image(UID, lambda chunks: extract(chunks, folder / "a", kind.figures[1], kind.figures[1])).finding


CALLS: dict[str, Call] = {
    "v2 series": lambda client, *_: client.series("C"),
    "v2 metadata": lambda client, *_: client._in_runs("series_metadata_bulk", [UID]),
    "collections": lambda client, *_: client.collection_values(),
    "series": lambda client, *_: client.series(series_uid=UID),
    "instances": lambda client, *_: client.sop_instance_uids(UID),
    "digest": lambda client, *_: client.md5_of_image("1.1.1"),
    "size": lambda client, *_: client.series_size(UID),
    "fetch": fetched,
    "single": single,
    "annotations": annotated,
}


def outcome(url: str, name: str, kind: Kind, folder: Path) -> str:
    """Make the call of a kind, and return what came of it."""
    api = "v2" if kind.call.startswith("v2") else "v4"
    try:
        with NbiaClient(f"{url}/{name}/nbia-api", api=api, options=PATIENCE) as client:
            return str(CALLS[kind.call](client, kind, folder))[:1000]
    except (ArchiveError, NotVerified) as e:
        return f"{type(e).__name__}: {e}"[:1000]


def main(url: str, folder: str, *names: str) -> None:
    for name in names:
        if os.fork():  # so that what one kind leaves behind does not count for the next
            os.wait()
            continue
        signal.alarm(MOST_SECONDS)  # then it says nothing
        began = time.monotonic()
        text = outcome(url, name, kinds()[name], Path(folder) / name)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000
        print(json.dumps({"kind": name, "text": text, "seconds": time.monotonic() - began, "mb": peak}), flush=True)
        os._exit(0)


# --- what answers


@contextlib.contextmanager
def serving_hostile(size: int) -> Iterator[str]:
    """Serve every kind below its name, with answers of about `size` bytes decoded; yields the address."""
    known = kinds()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                while line := self.rfile.readline():
                    path = line.decode("latin-1").split(" ")[1].partition("?")[0]
                    length = 0
                    while (header := self.rfile.readline().strip().lower()) != b"":
                        if header.startswith(b"content-length:"):
                            length = int(header.partition(b":")[2])
                    self.rfile.read(length)
                    kind = known[path.split("/")[1]]
                    if path.endswith(kind.at):
                        # What is announced as huge is read for long: less of it shows as much.
                        for piece in kind.answer(size // 10 if kind.figures == HUGE else size):
                            self.connection.sendall(piece)
                        return
                    self.connection.sendall(honest(path))

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def honest(path: str) -> bytes:
    body = b""
    if path.endswith("token"):
        body = json.dumps({"access_token": "a-token-of-the-test", "expires_in": 3600}).encode()
    if path.endswith("getSOPInstanceUIDs"):
        body = b'[{"SOPInstanceUID":"1.1.1"}]'
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


if __name__ == "__main__":
    main(*sys.argv[1:])
