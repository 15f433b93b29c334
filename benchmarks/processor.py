"""Processor time of a download, part by part, in seconds per GB of unpacked files.

A few series of 60 slices of 512 x 512, as the archive packs them. Each part alone, over the same bytes in memory: what
the libraries need (inflate, MD5, CRC, write), the reader of DICOM's header, the client that only reads, and the
unpacking that only unpacks; then all of it, over HTTP in chunks of 8 KB from a process of its own, whose time does not
count, by one thread and by several.

``lock held`` is what is left of `all` by one thread without the calls that give up the interpreter's lock: its inverse
is what one process can unpack at most, however many processors there are.

    python benchmarks/processor.py --folder /dev/shm
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import platform
import re
import shutil
import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from image_archive import LARGE, server_words
from measuring import cpu_seconds, serving
from results import Results, add_option

from nbia_pipeline.archive import NbiaClient, connections
from nbia_pipeline.archive.bounds import ZIP_CHUNK_BYTES
from nbia_pipeline.mirror import unpack, zip_stream
from nbia_pipeline.mirror.dicom_header import read_header

FRAME_BYTES = 8192  # of the server's chunks
BAR = 4.8
LOCK_BAR = 0.5
LIBRARIES = ("inflate", "md5", "crc", "write")


def zips_of(series: int, slices: int) -> dict[str, bytes]:
    """Return the zip of each series, as the archive of the image benchmarks sends it."""
    with serving(*server_words(series, slices, 0, 0)) as line, NbiaClient(json.loads(line)["url"]) as client:
        uids = client.series(collection=LARGE)["SeriesInstanceUID"].to_pylist()
        return {uid: client.image_with_md5(uid, b"".join) for uid in uids}


# --- the other end


def send(listener: socket.socket, zips: dict[str, bytes]) -> None:
    """Answer each request with the zip that it names, in chunks; runs in a process of its own."""
    answers = {uid.encode(): _framed(zipped) for uid, zipped in zips.items()}

    def answer(connection: socket.socket) -> None:
        while request := connection.recv(1 << 16):  # a request is one segment
            asked = re.search(rb"SeriesInstanceUID=([\d.]+)", request)
            assert asked
            connection.sendall(answers[asked[1]])

    while True:
        threading.Thread(target=answer, args=listener.accept()[:1], daemon=True).start()


def _framed(body: bytes) -> bytes:
    parts = [b"HTTP/1.1 200 OK\r\nContent-Type: application/zip\r\nTransfer-Encoding: chunked\r\n\r\n"]
    for at in range(0, len(body), FRAME_BYTES):
        part = body[at : at + FRAME_BYTES]
        parts += [b"%x\r\n" % len(part), part, b"\r\n"]
    return b"".join([*parts, b"0\r\n\r\n"])


# --- calls that give up the lock


class Released:
    """Seconds of processor time of the calls of one thread that give up the interpreter's lock."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return the same call, measured."""

        def measured(*args: Any, **kwargs: Any) -> Any:
            began = time.thread_time()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += time.thread_time() - began

        return measured

    def install(self) -> None:
        """Measure the calls of the product: inflate, MD5, CRC, write, and reading from a connection."""
        timed, inflater = self.timed, zip_stream.Inflater

        class Inflater:
            def __init__(self) -> None:
                self._inner = inflater()
                self.decompress = timed(self._inner.decompress)

            def __getattr__(self, name: str) -> Any:
                return getattr(self._inner, name)

        class Hash:
            def __init__(self, **_: bool) -> None:
                inner = hashlib.md5(usedforsecurity=False)
                self.update, self.hexdigest = timed(inner.update), inner.hexdigest

        patched: list[tuple[Any, str, Any]] = [
            (zip_stream, "Inflater", Inflater),
            (zip_stream, "crc32", timed(zip_stream.crc32)),
            (unpack, "hashlib", SimpleNamespace(md5=Hash)),
            (unpack, "_write", timed(unpack._write)),
            (connections.Steady, "readinto", _method(timed, connections.Steady.readinto)),
        ]
        for where, name, what in patched:
            setattr(where, name, what)


def _method(timed: Callable[..., Any], function: Callable[..., int]) -> Callable[..., int]:
    call = timed(function)
    return lambda self, buffer: call(self, buffer)


# --- the parts


def parts_of(
    zips: dict[str, bytes], url: str, folder: Path, threads: int
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the parts of the work, each with what does it."""
    packed = [content for zipped in zips.values() for content in _packed(zipped)]
    plain = [zip_stream.Inflater().decompress(content, zip_stream.PIECE_BYTES) for content in packed]
    images = [content for content in plain if content[128:132] == b"DICM"]
    bounds = unpack.ZipBounds(1 << 40, 1 << 20)

    def all_of(uid: str, chunks: Iterator[bytes]) -> unpack.Unpacked:
        found = unpack.unpack(chunks, folder / uid, uid, bounds)
        assert found.instances and found.instances.keys() == found.verified().keys()
        return found

    def local(uid: str) -> Iterator[bytes]:
        zipped = zips[uid]
        return (zipped[at : at + ZIP_CHUNK_BYTES] for at in range(0, len(zipped), ZIP_CHUNK_BYTES))

    def fetched(read: Callable[[str, Iterator[bytes]], object], workers: int) -> None:
        with NbiaClient(url, api="v4") as client, ThreadPoolExecutor(workers) as pool:
            list(pool.map(lambda uid: client.image_with_md5(uid, lambda chunks: read(uid, chunks)), zips))

    def write() -> None:
        for number, content in enumerate(images):
            unpack._write(str(folder / str(number)), content)

    def each(contents: list[bytes], call: Callable[[bytes], object]) -> Callable[[], None]:
        return lambda: deque(map(call, contents), maxlen=0)  # type: ignore[func-returns-value]

    yield "inflate", each(packed, lambda content: zip_stream.Inflater().decompress(content, zip_stream.PIECE_BYTES))
    yield "md5", each(plain, lambda content: hashlib.md5(content, usedforsecurity=False))
    yield "crc", each(plain, zip_stream.crc32)
    yield "write", write
    yield "header", each(images, read_header)
    yield "http", lambda: fetched(lambda _, chunks: sum(map(len, chunks)), 1)
    yield "unpack", lambda: [all_of(uid, local(uid)) for uid in zips]
    yield "all", lambda: fetched(all_of, 1)
    yield f"all x {threads}", lambda: fetched(all_of, threads)


def _packed(zipped: bytes) -> Iterator[bytes]:
    with zipfile.ZipFile(io.BytesIO(zipped)) as opened:
        for entry in opened.infolist():
            name, extra = struct.unpack_from("<2H", zipped, entry.header_offset + 26)
            begin = entry.header_offset + 30 + name + extra
            yield zipped[begin : begin + entry.compress_size]


def main() -> int:
    options = _options()
    zips = zips_of(options.series, options.slices)
    gigabytes = sum(e.file_size for z in zips.values() for e in zipfile.ZipFile(io.BytesIO(z)).infolist()) / 1e9
    released = Released()
    figures: dict[str, list[float]] = {}
    with (
        socket.create_server(("127.0.0.1", 0), backlog=64) as listener,
        tempfile.TemporaryDirectory(prefix="nbia-bench-", dir=options.folder) as temporary,
    ):
        sender = multiprocessing.get_context("fork").Process(target=send, args=(listener, zips), daemon=True)
        sender.start()
        url, folder = f"http://127.0.0.1:{listener.getsockname()[1]}/nbia-api", Path(temporary) / "files"

        def measure(name: str, deed: Callable[[], object]) -> float:
            folder.mkdir()
            began = cpu_seconds()
            deed()
            figures.setdefault(name, []).append((cpu_seconds() - began) / gigabytes)
            shutil.rmtree(folder)
            return figures[name][-1]

        parts = dict(parts_of(zips, url, folder, options.threads))
        for _ in range(options.rounds):
            for name, deed in parts.items():
                measure(name, deed)
        released.install()
        for _ in range(options.rounds):
            released.seconds = 0.0
            whole = measure("all, its calls measured", parts["all"])
            figures.setdefault("lock held", []).append(whole - released.seconds / gigabytes)
        sender.terminate()
        sender.join()
    print(
        f"{os.cpu_count()} processors, {platform.machine()}, Python {platform.python_version()}, {len(zips)} series, "
        f"{gigabytes * 1000:,.0f} MB in {options.folder or tempfile.gettempdir()}; medians of {options.rounds} rounds"
    )
    print("seconds of processor time per GB")
    results = Results(options.json)
    for name, taken in figures.items():
        print(f"{name:<24} {statistics.median(taken):6.2f}")
        results.add(f"per GB, {name}", (statistics.median(taken), "s"), rounds=options.rounds)
    floor = sum(statistics.median(figures[name]) for name in LIBRARIES)
    every, held = statistics.median(figures[f"all x {options.threads}"]), statistics.median(figures["lock held"])
    spoken = f"all x {options.threads}"
    print(f"{spoken}: {every / floor:.2f} of the {floor:.2f} s that {', '.join(LIBRARIES)} take alone")
    results.add(f"{spoken}, of what {', '.join(LIBRARIES)} take alone", (every / floor, "times"), rounds=options.rounds)
    results.at_most(BAR, f"processor time per GB, {spoken}", every, "s", options.rounds)
    results.at_most(LOCK_BAR, "the interpreter's lock is held, per GB", held, "s", options.rounds)
    return results.finish()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Processor time of a download, part by part.")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds (default: %(default)s)")
    parser.add_argument("--series", type=int, default=6, help="series (default: %(default)s)")
    parser.add_argument("--slices", type=int, default=60, help="slices of each of them (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=3, help="threads at a time (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="directory to work in (default: the system's for temporary files)")
    add_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
