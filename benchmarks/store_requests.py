"""The side of the benchmark of object stores: ``store_requests.py JOB`` mirrors a collection into a bucket.

It counts the requests to the store where they leave botocore, repeated ones among them, by what each is for. JOB is a
JSON file with the archive, the collection, the address of the lake, and a folder for what it found.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from measuring import timed

REQUESTS = "requests.json"
"""Name of the file with the number of requests by what they are for."""

_KINDS = (
    (r"\.staging/locks/(?:[^/~]|%)+?\.[0-9.]+\.lock", "lock of the series"),
    (r"\.staging/locks/[^/~]+\.lock", "lock of the collection"),
    (r"\.staging/locks/", "other locks"),
    (r"\.staging/journal/.*\.json", "journal entry"),
    (r"\.staging/journal", "journal"),
    (r"images/.*\.dcm", "file"),
    (r"images/", "folder"),
    (r"tables/", "table"),
)
_DELETED = re.compile(rb"<Key>([^<]*)</Key>")


class Counted:
    """Counts the requests of a file system of s3fs.

    Args:
        fs: the file system.
        root: bucket and prefix of the lake.
    """

    def __init__(self, fs: Any, root: str) -> None:
        self.found: Counter[str] = Counter()
        self._root = f"/{root}/"
        self._guard = threading.Lock()
        fs.connect()
        fs.s3.meta.events.register("before-send.s3", self._count)

    def _count(self, request: Any, **_: Any) -> None:
        with self._guard:
            self.found[purpose(request, self._root)] += 1


def purpose(request: Any, root: str) -> str:
    """Return what a request is for, like ``PUT file``."""
    address = urlsplit(request.url)
    query = parse_qs(address.query, keep_blank_values=True)
    if "delete" in query:
        key = (_DELETED.search(request.body) or [b"", b"?"])[1].decode()
        return f"DELETE many: {_kind(f'/{key}', '/' + root.split('/', 2)[2])}"
    if "list-type" in query:
        return f"LIST {_kind('/' + query['prefix'][0], '/' + root.split('/', 2)[2])}"
    part = " part" if {"uploadId", "uploads"} & set(query) else ""
    return f"{request.method} {_kind(unquote(address.path), root)}{part}"


def _kind(path: str, root: str) -> str:
    relative = path.removeprefix(root)
    return next((name for pattern, name in _KINDS if re.match(pattern, relative)), "the rest")


def main() -> None:
    """Mirror the collection, and leave what the work took and the requests; the plan does not count."""
    from nbia_pipeline.archive import NbiaClient
    from nbia_pipeline.lake import Lake
    from nbia_pipeline.mirror.engine import Mirror

    job = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(job["folder"])
    with NbiaClient(job["url"]) as client:
        lake = Lake(job["lake"])
        mirror = Mirror(client, lake)
        mirror.update_tables(job["collection"])
        plan = mirror.plan(job["collection"])
        counted = Counted(lake._unchecked.fs._target, lake._unchecked.root)
        with timed(folder):
            for batch in plan.batches():
                mirror.fetch(batch)
            receipts = mirror.commit(job["collection"])
    (folder / REQUESTS).write_text(json.dumps(counted.found))
    if set(receipts["Status"].to_pylist()) != {"complete"}:
        raise SystemExit(f"not all is complete: {receipts['Reason'].to_pylist()}")


if __name__ == "__main__":
    main()
