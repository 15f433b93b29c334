"""A lake in an object store: objects are replaced by a single PUT, and there are no folders and no renames.

A request takes some ten milliseconds, however little it is about, so that there are few of them, and several at a time:
all threads of a process share :data:`REQUESTS`.
"""

from __future__ import annotations

import base64
import errno
import io
import math
import os
import shutil
import stat
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from fsspec.callbacks import Callback

from nbia_pipeline import stopping
from nbia_pipeline.lake.base_store import MISSING, NO_DIGESTS, BaseStore, BeforeReplacing, Digests, Record
from nbia_pipeline.lake.errors import reason
from nbia_pipeline.lake.filesystem import NoAnswer, NoStore, changed_at, codes_of, kinds_of, refusal
from nbia_pipeline.lake.layout import LOCKS, RUNS, is_foreign
from nbia_pipeline.lake.lock import LEFTOVER_SECONDS, ExpectHeld, Lock, among_threads, is_dead, this_process
from nbia_pipeline.lake.object_lock import ObjectLocks
from nbia_pipeline.lake.side_by_side import Budget, SharedThreads, Together
from nbia_pipeline.text import logger

ANSWER_SECONDS = 12
"""How long a store may take for its first answer."""

T = TypeVar("T")

log = logger(__name__)

AT_A_TIME = 16
REQUESTS = SharedThreads(AT_A_TIME, "nbia-store")
"""Uploads, and other requests that need not be one after the other; never more than :data:`AT_A_TIME`."""
PART_BYTES = 8 << 20
"""What is sent to S3 at a time of a file; what has less than two of it is sent as a whole."""
UPLOAD_BYTES = 64 << 20
"""What all uploads of a process may have in memory; it is there twice where a connection does not take it at once."""
READ_BYTES = 4 << 20
"""What is read at a time of a file; what has not more is read at once."""

_MEMORY = Budget(UPLOAD_BYTES)
_WORKSPACE = "nbia-"
"""What the names of temporary directories begin with; the name of their process follows."""
_MOST_PARTS = 10_000  # S3
_S3 = {"s3", "s3a"}


class ObjectStore(BaseStore):
    """A prefix of an object store: a file is replaced by a single PUT, a folder file by file."""

    def __init__(self, fs: Any, root: str) -> None:
        super().__init__(fs, root)
        self._locks = ObjectLocks(fs, self.full(LOCKS))
        protocol = fs.protocol
        self._is_s3 = not _S3.isdisjoint([protocol] if isinstance(protocol, str) else protocol)
        self._records: Together[str] = Together(root, partial(self.lock, Lock.COLLECTION), REQUESTS)

    def read_first(self, path: str) -> bytes | None:
        """Return the content of a small object, the first that is read of a lake, None if there is no such object.

        The packages try for minutes to reach a store that is not there, and ask for less than a whole answer.
        """
        limit = {"timeout": ANSWER_SECONDS} if getattr(self.fs, "async_impl", False) else {}
        try:
            content: bytes = self.fs.cat_file(self.full(path), max_concurrency=1, **limit)
        except MISSING:
            return None
        except OSError as e:
            if "FSTimeoutError" in kinds_of(e):
                raise NoAnswer(errno.ETIMEDOUT, f"no answer in {ANSWER_SECONDS} seconds") from e
            raise
        if content.lstrip().startswith(b"<"):
            raise NoStore(errno.EPROTO, "the answer is a web page")
        return content

    def read(self, path: str) -> bytes | None:
        """Return the content of an object, None if there is no such object."""
        # s3fs would ask for the size first, to read a large one in pieces.
        options = {"max_concurrency": 1} if self._is_s3 else {}
        try:
            content: bytes = self.fs.cat_file(self.full(path), **options)
        except MISSING:
            return None
        return content

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """Return some bytes of an object, fewer where it ends before; it must be there."""
        try:
            return super().read_range(path, offset, length)
        except OSError as e:
            if {"InvalidRange", "416"} & codes_of(e):  # it ends before the first of them
                return b""
            raise

    def side_by_side(self, calls: Iterable[Callable[[], T]]) -> Iterator[T]:
        """Yield what some calls return that read objects, in their order; several are made at a time."""
        return REQUESTS.results(calls)

    def open(self, path: str, size: int | None = None) -> BinaryIO:
        """Open an object for reading; one that is known to be small is read at once, in one request."""
        if size is not None and size <= READ_BYTES:
            content = self.read(path)
            if content is None:
                raise FileNotFoundError(self.full(path))
            return io.BytesIO(content)
        file: BinaryIO = self.fs.open(self.full(path), "rb", block_size=READ_BYTES)
        return file

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the sizes in bytes of all files below a folder, by path; none if there is no such folder."""
        return {path: int(about["size"]) for path, about in self._below(folder).items()}

    def _below(self, folder: str) -> dict[str, dict[str, Any]]:
        """Return what the store says of all objects below a folder, by path, from one list of their names."""
        above, _, name = self.full(folder).rpartition("/")
        # Not the folder itself: where nothing is below it, s3fs would ask twice more what it is.
        found = self.fs.find(above, prefix=f"{name}/", detail=True)
        paths = {str(path).removeprefix(self.full("")): about for path, about in found.items()}
        return {path: about for path, about in paths.items() if path.startswith(f"{folder}/") and path[-1] != "/"}

    def put(self, path: str, data: Any) -> None:
        """Write bytes or an Arrow buffer to an object, completely or not at all."""
        self.fs.pipe_file(self.full(path), bytes(data))

    def put_file(self, staged: Path, path: str, md5: str | None = None) -> None:
        """Upload a file of a workspace; S3 refuses content that has not its MD5.

        Packages send a CRC besides, of the file as they read it.
        """
        size = staged.stat().st_size
        part = max(PART_BYTES, math.ceil(size / _MOST_PARTS))
        options: dict[str, Any] = {}
        if self._is_s3:
            options = {"chunksize": part, "max_concurrency": 1}
            if md5 is not None and size < 2 * part:
                options["ContentMD5"] = base64.b64encode(bytes.fromhex(md5)).decode()
        try:
            with _MEMORY.take(size if size < 2 * part else part):
                self.fs.put_file(str(staged), self.full(path), callback=_WhileRunning(), **options)
        except InterruptedError:
            stopping.expect_running()
            raise

    def keep(self, path: str, kept: str) -> None:
        """Keep an object under another path too, before another one replaces it."""
        self.fs.cp_file(self.full(path), self.full(kept))

    note = put

    def note_new(self, path: str, data: bytes) -> bool:
        """Write an object if there is none; return whether there was none."""
        return refusal(self.fs, self.full(path), data) is None

    def remove_all(self, paths: Iterable[str]) -> None:
        """Remove some objects, a thousand with a request; they may be gone already."""
        full = [self.full(path) for path in paths]
        with suppress(*MISSING):
            if full:
                self.fs.rm(full)

    def flush(self) -> None:
        """Do nothing: an object is stored for good when the store says so."""

    def make_workspace(self) -> Path:
        """Make a temporary directory, named after this process; the caller removes it."""
        return Path(tempfile.mkdtemp(prefix=f"{_WORKSPACE}{this_process()}."))

    def publish_folder(self, staged: Path, path: str) -> None:
        """Upload the files of a directory of a workspace to a folder of the lake, then remove older ones."""
        self._replace(staged, path, self._below(path), NO_DIGESTS)

    def _replace(self, staged: Path, path: str, older: Iterable[str], digests: Digests) -> None:
        files = {f"{path}/{file.name}": file for file in sorted(staged.iterdir())}
        uploads = (partial(self.put_file, file, to, digests.get(file.name)) for to, file in files.items())
        for _ in REQUESTS.results(uploads):
            pass
        self.remove_all(old for old in older if old not in files and not is_foreign(old.rpartition("/")[2]))

    def publish(
        self,
        staged: Path,
        path: str,
        collection: str,
        series_uid: str,
        record: Record,
        before_replacing: BeforeReplacing,
        digests: Digests = NO_DIGESTS,
    ) -> None:
        """Upload the files before the entry of the journal is written, which names no staged directory."""
        # An upload takes its time: it keeps others from this series only, not from the collection.
        with self.lock(Lock.SERIES, collection, series_uid) as expect_held:
            older = self._below(path)
            if older:
                before_replacing()
            self._replace(staged, path, older, digests)

            def record_if_held() -> str:
                expect_held()
                return record(None)

            self._records.do(collection, record_if_held)

    def publish_staged(self, name: str, path: str) -> bool:
        """Return False: files are uploaded before their entry is written."""
        return False

    def staged(self) -> list[str]:
        """Return nothing: there is no staging area except for locks and journal."""
        return []

    def sweep(self, keep: set[str]) -> int:
        """Remove what dead processes and old runs left, and return how much that was.

        That is temporary directories of this user; locks; what the steps of a run handed over, a week after the last of
        it was written; and parts of uploads to S3 that were begun a week ago.
        """
        named = Path(tempfile.gettempdir()).glob(f"{_WORKSPACE}*")
        dead = [entry for entry in named if is_dead(entry.name.removeprefix(_WORKSPACE)) and _is_private(entry)]
        for entry in dead:
            shutil.rmtree(entry, ignore_errors=True)
        return len(dead) + self._locks.sweep() + self._sweep_runs() + (self._sweep_parts() if self._is_s3 else 0)

    def _sweep_runs(self) -> int:
        runs: dict[str, dict[str, float]] = defaultdict(dict)
        for path, about in self._below(RUNS).items():
            runs[path.removeprefix(f"{RUNS}/").partition("/")[0]][path] = changed_at(about) or time.time()
        old = [run for run in runs.values() if max(run.values()) < time.time() - LEFTOVER_SECONDS]
        self.remove_all(path for run in old for path in run)
        return len(old)

    def _sweep_parts(self) -> int:
        bucket, _, prefix = self.full("").partition("/")
        try:
            found = self.fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix).get("Uploads", [])
        except OSError as e:  # it takes a permission of its own, and not every store has it
            log.info("cannot list the parts of abandoned uploads: %s", reason(e))
            return 0
        since = time.time() - LEFTOVER_SECONDS
        old = [one for one in found if one["Key"].startswith(prefix) and one["Initiated"].timestamp() < since]
        for one in old:
            self.fs.abort_mpu(bucket, one["Key"], one["UploadId"])
        return len(old)

    def remove_folder(self, path: str) -> None:
        """Remove a folder; it may be gone already."""
        self.remove_all(self._below(path))

    @contextmanager
    def lock(self, lock: Lock, collection: str, series_uid: str = "") -> Iterator[ExpectHeld]:
        """Hold a lock that all processes share that write to the store."""
        path = self.full(lock.path(collection, series_uid))
        with among_threads(path), self._locks.hold(path) as expect_held:
            yield expect_held

    def free_bytes(self) -> None:
        """Return None: there is no bound."""
        return None


def _is_private(entry: Path) -> bool:
    """Return whether this user made a directory that is closed to others: anybody may use such a name."""
    try:
        status = entry.lstat()
    except FileNotFoundError:
        return False  # another run removed it
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and stat.S_IMODE(status.st_mode) == 0o700


class _WhileRunning(Callback):  # type: ignore[misc]
    """Ends an upload in parts when its thread is to stop; the package then gives up the parts that it has sent."""

    def relative_update(self, inc: int = 1) -> None:
        """Be called after each part.

        Raises:
            InterruptedError: the thread is to stop; packages clean up after an Exception only.
        """
        try:
            stopping.expect_running()
        except stopping.Stopped:
            raise InterruptedError from None
