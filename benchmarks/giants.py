"""An archive of series that are too large to hold: made while they are sent, of one block of pixels over and over.

``python benchmarks/giants.py JSON`` serves it until it is stopped; the JSON is a list with the sizes of the files of
each series, in MiB. It prints one line of JSON: where it is, and what must arrive. The zips are what the archive sends
(deflated entries with a data descriptor, ``md5hashes.csv`` last), the files are DICOM up to their pixels, and all other
calls are answered by the embedded archive.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import sys
import urllib.parse
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow as pa
from image_archive import Facts
from starlette.applications import Starlette

from nbia_pipeline.embedded.api.zip_writer import Packed, ZipStream, pack
from nbia_pipeline.embedded.catalog.model import CATALOG_SCHEMA, Catalog, StoredInstance
from nbia_pipeline.embedded.demo.catalog import demo_plans
from nbia_pipeline.embedded.phantoms.dicom_files import SeriesPlan, common, encode, put, uid_of
from nbia_pipeline.embedded.server.app import API, create_app
from nbia_pipeline.embedded.server.run import make_server

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

COLLECTION = "Giants"
BLOCK_BYTES = 1 << 20
CHUNK_BYTES = 64 * 1024


def _block() -> bytes:
    """Return a mebibyte of what looks like noise on an even ground: it deflates to about a third."""
    noise = np.random.default_rng(0).integers(0, 24, BLOCK_BYTES // 2)
    return (1000 + noise).astype("<u2").tobytes()


def _flushed(data: bytes) -> bytes:
    """Deflate so that the result refers to nothing before it and may stand anywhere in a stream."""
    deflater = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    return deflater.compress(data) + deflater.flush(zlib.Z_FULL_FLUSH)


BLOCK = _block()
PACKED_BLOCK = _flushed(BLOCK)
THE_END = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS).flush()


@dataclass(frozen=True)
class GiantFile:
    """A DICOM file whose pixels are a block, repeated.

    Attributes:
        series: the series that it belongs to.
        number: InstanceNumber, from 1.
        blocks: how often the block stands in it.
    """

    series: SeriesPlan
    number: int
    blocks: int

    @cached_property
    def head(self) -> bytes:
        """The file up to its pixels; the last element is (7FE0,0010) with the length of what follows."""
        dataset = common(self.series)
        put(dataset, "InstanceNumber", self.number)
        pixels = struct.pack("<2H2sHI", 0x7FE0, 0x0010, b"OW", 0, self.blocks * BLOCK_BYTES)
        return encode(dataset, self.sop) + pixels

    @property
    def sop(self) -> str:
        """SOPInstanceUID (0008,0018)."""
        return self.series.sop_instance(self.number)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.head) + self.blocks * BLOCK_BYTES

    @cached_property
    def digest(self) -> str:
        """MD5 of the file."""
        found = hashlib.md5(self.head, usedforsecurity=False)
        for _ in range(self.blocks):
            found.update(BLOCK)
        return found.hexdigest()

    @cached_property
    def packed(self) -> Packed:
        """The deflated file; its data are made when they are sent."""
        crc = zlib.crc32(self.head)
        for _ in range(self.blocks):
            crc = zlib.crc32(BLOCK, crc)
        # The writer of zips asks for the length of the data, and hands them on.
        return Packed(crc, self.size, cast(bytes, _Deflated(_flushed(self.head), self.blocks)))


@dataclass(frozen=True)
class _Deflated:
    head: bytes
    blocks: int

    def __len__(self) -> int:
        return len(self.head) + self.blocks * len(PACKED_BLOCK) + len(THE_END)

    def __iter__(self) -> Iterator[bytes]:
        yield self.head
        for _ in range(self.blocks):
            for start in range(0, len(PACKED_BLOCK), CHUNK_BYTES):
                yield PACKED_BLOCK[start : start + CHUNK_BYTES]
        yield THE_END


class GiantStore:
    """The files of an archive of giants; implements :class:`~nbia_pipeline.embedded.catalog.model.ImageStore`."""

    def __init__(self, files: Sequence[GiantFile]) -> None:
        """Take the files, and reckon their digests."""
        self._files: dict[str, dict[str, GiantFile]] = {}
        for file in files:
            self._files.setdefault(file.series.uid, {})[file.sop] = file
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            self.digests = sorted(pool.map(lambda file: file.packed and file.digest, files))

    def files(self, series_uid: str) -> list[GiantFile]:
        """Return the files of a series; none for one that is not there."""
        return list(self._files.get(series_uid, {}).values())

    def instances(self, series_uid: str) -> Sequence[StoredInstance]:
        """Return the instances of a series by InstanceNumber; empty for a series without files."""
        return [StoredInstance(f.sop, f.series.sop_class, f.number, None, f.size) for f in self.files(series_uid)]

    def read(self, series_uid: str, sop_instance_uid: str) -> bytes:
        """Return the bytes of one file, in memory; raises KeyError if there is no such file."""
        file = self._files[series_uid][sop_instance_uid]
        return file.head + BLOCK * file.blocks

    def md5(self, series_uid: str, sop_instance_uid: str) -> str | None:
        """Return the digest of a file; raises KeyError if there is no such file."""
        return self._files[series_uid][sop_instance_uid].digest

    def zipped(self, series_uid: str) -> Iterator[bytes]:
        """Yield the zip of a series in pieces of at most 64 KiB or so."""
        archive, listed = ZipStream(), ["Filename,MD5Hash"]
        for file in self.files(series_uid):
            name = f"{file.number:08d}.dcm"
            listed.append(f"{name},{file.digest}")
            for part in archive.entry(name, file.packed):
                yield from part if isinstance(part, _Deflated) else (part,)
        yield from archive.entry("md5hashes.csv", pack(("\n".join(listed) + "\n").encode()))
        yield archive.close()


class Giants:
    """Sends the zips of giants; everything else is answered by the application behind."""

    def __init__(self, app: ASGIApp, store: GiantStore) -> None:
        self._app = app
        self._store = store

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 - ASGI
        if scope["type"] != "http" or not scope["path"].endswith("/getImageWithMD5Hash"):
            await self._app(scope, receive, send)
            return
        uid = urllib.parse.parse_qs(scope["query_string"].decode())["SeriesInstanceUID"][0]
        headers = [(b"content-type", b"application/octet-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in self._store.zipped(uid):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def giant_files(sizes: Sequence[Sequence[int]]) -> list[GiantFile]:
    """Return the files of series: for each the sizes of its files, in blocks of a mebibyte."""
    kind = next(plan for plan in demo_plans() if plan.modality == "CT")
    files = []
    for number, blocks in enumerate(sizes):
        uids = {name: uid_of(COLLECTION, number, name) for name in ("StudyInstanceUID", "SeriesInstanceUID")}
        facts = {**kind.row, **uids, "Collection": COLLECTION, "PatientID": f"G-{number}"}
        plan = SeriesPlan(facts, kind.anatomy, 1.0, kind.geometry, ("ct",), uid_of(COLLECTION, number, "frame"))
        files += [GiantFile(plan, n, count) for n, count in enumerate(blocks, 1)]
    return files


def giant_app(files: Sequence[GiantFile]) -> tuple[Starlette, GiantStore]:
    """Return the application of an archive that holds these files, and the files as a store."""
    store = GiantStore(files)
    rows = []
    for plan in {file.series.uid: file.series for file in files}.values():
        sizes = [instance.size for instance in store.instances(plan.uid)]
        rows.append({**plan.row, "ImageCount": len(sizes), "FileSize": sum(sizes), "SOPClassUID": plan.sop_class})
    catalog = Catalog(pa.Table.from_pylist(rows, schema=CATALOG_SCHEMA), store)
    return cast(Starlette, Giants(create_app(catalog), store)), store


def main() -> None:
    """Serve what the command line asks for."""
    files = giant_files(json.loads(sys.argv[1]))
    app, store = giant_app(files)
    uids = list(dict.fromkeys(file.series.uid for file in files))
    wire = sum(len(file.packed.data) for file in files)
    facts = Facts(COLLECTION, uids, store.digests, sum(file.size for file in files), wire)
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}{API}"
        print(json.dumps({"url": url, "facts": asdict(facts)}), flush=True)
        make_server(app).run(sockets=[listener])


if __name__ == "__main__":
    main()
