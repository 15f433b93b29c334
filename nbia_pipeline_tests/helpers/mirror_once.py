"""Mirror an archive once with the engine alone, without Dagster.

As a process of its own, for tests that kill it::

    python -m nbia_pipeline_tests.helpers.mirror_once URL LAKE [DIE_AT [COLLECTION...]]

It ends with 0 when all that is listed is in the lake, with 2 when some series could not be had, with 3 when the
archive or the lake cannot be used. With DIE_AT it kills itself, as hard as the system can, just before its
DIE_AT-th change of the disk, or of the object store; with ``record:DIE_AT`` only changes of tables and journal count,
with ``PART OF A CHANGE:DIE_AT`` those whose description has that part, such as ``put_object journal:1``. DIE_AT of 0
prints how many changes there were, how many of tables and journal, and what was opened for writing outside the
staging area; ``never`` does nothing.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from nbia_pipeline.address import is_uri
from nbia_pipeline.archive import ArchiveError, ClientOptions, NbiaClient
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.lake.layout import STAGING
from nbia_pipeline.mirror.engine import Mirror
from nbia_pipeline.mirror.receipt import Receipt
from nbia_pipeline.schema.status import COMPLETE
from nbia_pipeline.schema.tables import SERIES

DONE, NOT_ALL, UNUSABLE = 0, 2, 3

# Small ones, so that there are several in every collection of the demo.
BATCH_SERIES = 5

SHORT = ClientOptions(connect_timeout=2, read_timeout=10, tries=3, backoff=0.01, max_backoff=0.05)

_WRITES = os.O_WRONLY | os.O_RDWR
_REQUESTS = ("put", "copy", "delete", "create", "upload", "complete")
_CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir")


class ImagesAlone(Mirror):
    """Asks for no licenses: the requests and files of theirs have tests of their own."""

    def _keep_licenses(self, collection: str, series: pa.Table) -> None:
        pass


def mirror(
    client: NbiaClient, lake: Lake, collections: Sequence[str] | None = None, streams: int | None = None
) -> list[Receipt]:
    """Mirror some collections, or all, and return what became of the series that were fetched."""
    receipts = []
    engine = ImagesAlone(client, lake, streams=streams)
    for collection in client.collection_values() if collections is None else collections:
        lake.write_table(SERIES, client.series(collection), collection)
        for batch in engine.plan(collection).batches(BATCH_SERIES):
            receipts += engine.fetch(batch)
        engine.commit(collection)
    return receipts


def watch_changes(at: Callable[[str, str], None]) -> None:
    """Call `at` just before every change of the disk by this process.

    The writing of images is left out: those are most changes, and all alike.

    Args:
        at: takes the kind of the change (``open`` for writing, ``os.rename``, ...) and the paths that it is about.
    """

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            if not isinstance(arguments[2], int) or not arguments[2] & _WRITES:
                return
            arguments = arguments[:1]
            if str(arguments[0]).endswith(".dcm") and STAGING in str(arguments[0]):
                return
        elif event not in _CHANGES:
            return
        at(event, " ".join(str(argument) for argument in arguments))

    sys.addaudithook(hook)


def watch_requests(at: Callable[[str, str], None]) -> None:
    """Call `at` just before every request of this process that changes an object store.

    Args:
        at: takes the kind of the request (``put_object``, ``delete_objects``, ...) and the keys that it is about.
    """
    from fsspec.asyn import sync_wrapper
    from s3fs import S3FileSystem

    call = S3FileSystem._call_s3

    async def watched(self: Any, method: str, *words: Any, **arguments: Any) -> Any:
        if method.split("_")[0] in _REQUESTS:
            keys = {name: arguments[name] for name in ("Key", "Delete") if name in arguments}
            at(method, str([*words, keys]))
        return await call(self, method, *words, **arguments)

    S3FileSystem._call_s3 = watched
    S3FileSystem.call_s3 = sync_wrapper(watched)  # what files use that are written in pieces


def main(url: str, lake: str, die_at: str = "never", *collections: str) -> int:
    """Mirror once; return how the process shall end."""
    opened: list[str] = []
    part, _, number = die_at.rpartition(":")
    counts: Counter[str] = Counter()

    def at(event: str, paths: str) -> None:
        kinds = {"", part} if all(word in f"{event} {paths}" for word in part.split()) else {""}
        if "/tables/" in paths or "/journal/" in paths:
            kinds.add("record")
        counts.update(kinds)
        if part in kinds and number == str(counts[part]):
            os.kill(os.getpid(), signal.SIGKILL)
        if event == "open":
            opened.append(paths)

    if die_at != "never":
        (watch_requests if is_uri(lake) else watch_changes)(at)
    try:
        with NbiaClient(url, options=SHORT) as client:
            receipts = mirror(client, Lake(lake), collections or None)
    except (ArchiveError, LakeError) as e:
        sys.stderr.write(f"{type(e).__name__}: {e}\n")
        return UNUSABLE
    if die_at == "0":
        in_place = [p for p in opened if p.startswith(lake) and not p.startswith(f"{lake}/{STAGING}/")]
        sys.stdout.write("\n".join([str(counts[""]), str(counts["record"]), *in_place]))
    return DONE if all(r.status == COMPLETE for r in receipts) else NOT_ALL


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
