"""Whatever a store raises is a LakeError that says what to do; what the caller's own code raises is left alone."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nbia_pipeline.archive import ArchiveUnreachable
from nbia_pipeline.lake import Lake, LakeError, Lock
from nbia_pipeline.lake.errors import remedy
from nbia_pipeline.lake.layout import FORMAT_FILE, table_path
from nbia_pipeline.lake.lock import LockTimings
from nbia_pipeline.schema.tables import SERIES, STUDIES
from nbia_pipeline.settings import SettingsError
from nbia_pipeline_tests.helpers.chains import shown
from nbia_pipeline_tests.helpers.stores import exception, failing, new_address

ROWS = pa.Table.from_pylist([{"StudyInstanceUID": "1.1", "Collection": "A"}], schema=STUDIES.schema)
NONE = STUDIES.schema.empty_table()

USES: dict[str, Callable[[Lake, Path], object]] = {
    "format": lambda lake, _: lake.format,
    "check_writable": lambda lake, _: lake.check_writable(),
    "read_table": lambda lake, _: lake.read_table(STUDIES, "A"),
    "write_table": lambda lake, _: lake.write_table(STUDIES, ROWS, "A"),
    "write_pieces": lambda lake, _: lake.write_pieces(STUDIES, [ROWS], "A"),
    "has_table": lambda lake, _: lake.has_table(STUDIES, "A"),
    "count_rows": lambda lake, _: lake.count_rows(STUDIES, "A"),
    "read_pieces": lambda lake, _: list(lake.read_pieces(STUDIES, "A")),
    "read_properties": lambda lake, _: lake.read_properties(STUDIES, "A"),
    "collections_of": lambda lake, _: lake.collections_of(STUDIES),
    "put_bytes": lambda lake, _: lake.put_bytes("x", b"x"),
    "read_bytes": lambda lake, _: lake.read_bytes("x"),
    "open": lambda lake, _: lake.open(table_path("studies", "A")),
    "sizes": lambda lake, _: lake.sizes("tables"),
    "remove": lambda lake, _: lake.remove("x"),
    "remove_folder": lambda lake, _: lake.remove_folder("images/A/P/1/2"),
    "publish": lambda lake, files: lake.publish(files, "images/A/P/1/2", "A", "2", lambda _: "entry", lambda: None),
    "lock": lambda lake, _: lake.lock(Lock.CHANGES, "A").__enter__(),
}


def written() -> Lake:
    """A lake in a store, with a table; its format has been read already."""
    lake = Lake(new_address())
    lake.check_writable()
    lake.write_table(STUDIES, ROWS, "A")
    return lake


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_no_use_of_a_lake_lets_an_error_of_its_store_pass(use: Callable[[Lake, Path], object], tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_text("a")
    error = exception("NoCredentialsError", "Unable to locate credentials")
    for lake in (written(), Lake(new_address())):
        with (
            failing(lambda _: error),
            pytest.raises(
                LakeError,
                match=rf"^cannot \S.* in the lake {lake.uri} \(NoCredentialsError: Unable to locate credentials\): set",
            ) as raised,
        ):
            use(lake, tmp_path)
        assert raised.value.arguments == ("lake",)
        assert error in (link for link in (raised.value.__cause__, getattr(raised.value.__cause__, "__cause__", None)))


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (exception("NoCredentialsError", "Unable to locate credentials"), "set the account of the store"),
        (exception("PartialCredentialsError", "Partial credentials found in env"), "set the account of the store"),
        (exception("ProfileNotFound", "The config profile (x) could not be found"), "set the account of the store"),
        (exception("DefaultCredentialsError", "Your default"), "set the account of the store"),
        (exception("ClientAuthenticationError", "x"), "set the account of the store"),
        (PermissionError("The AWS Access Key Id you provided does not exist"), "set the account of the store"),
        (ValueError("Must provide either a connection_string or account_name"), "set the account of the store"),
        (exception("EndpointConnectionError", "Could not connect"), "check the address of the store"),
        (exception("ServerTimeoutError", "x", TimeoutError), "check the address of the store"),
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), "check the address of the store"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "check the address of the store"),
        (OSError(errno.EIO, "Internal Server Error"), "check the address of the store"),
        (ValueError("Invalid endpoint: x"), "check the address of the store"),
        (PermissionError("Forbidden"), "check that the account of the store .* may read and write there$"),
        (exception("HttpError", "Anonymous caller is not authorized, 401"), "check that the account of the store"),
        (exception("ClientError", "An error occurred"), "check that the account .*, and its address$"),
        (AttributeError("'NoneType' object has no attribute 'x'"), "check that the account .*, and its address$"),
        (RuntimeError("Loop is not running"), "check that the account .*, and its address$"),
    ],
    ids=lambda v: v if isinstance(v, str) else f"{type(v).__name__} {v}",
)
def test_an_error_of_a_store_says_what_to_do_about_it(error: Exception, remedy: str) -> None:
    with failing(lambda _: error), pytest.raises(LakeError, match=rf"\): {remedy}") as raised:
        Lake(new_address()).check_writable()
    assert str(error) in str(raised.value) or (error.args[-1] in str(raised.value))


def test_a_bucket_that_is_not_there_is_an_error_once_it_is_written_to() -> None:
    missing = FileNotFoundError("The specified bucket does not exist")
    with failing(lambda _: missing):
        lake = Lake(new_address())
        assert lake.read_bytes("x") is None
        with pytest.raises(LakeError, match=r"\(FileNotFoundError: The .* exist\): check that the bucket exists"):
            lake.check_writable()


def test_the_variables_of_a_store_are_named() -> None:
    error = exception("NoCredentialsError", "x")
    assert remedy(error, "s3://b/l") == remedy(error, "s3a://b/l")
    assert "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)" in remedy(error, "s3://b/l")
    assert "(GOOGLE_APPLICATION_CREDENTIALS)" in remedy(error, "gcs://b/l")
    assert "AZURE_STORAGE_ACCOUNT_KEY" in remedy(error, "abfs://b/l")
    where = "(AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, and AWS_REGION)"
    assert where in remedy(exception("EndpointConnectionError", "x"), "s3://b/l")
    assert where in remedy(exception("Unheard", "x"), "s3://b/l")
    assert remedy(error, "/data/lake") == "check that you may write there and that there is room"


def test_what_a_disk_cannot_do_has_its_own_remedy(tmp_path: Path) -> None:
    folder = tmp_path / table_path(SERIES.name, "C")
    folder.mkdir(parents=True)
    with pytest.raises(LakeError, match=r"Is a directory\): it should be a file: move the folder away"):
        Lake(str(tmp_path)).read_table(SERIES, "C")
    assert "a lake must be on one file system" in remedy(OSError(errno.EXDEV, "x"), "/data/lake")


def test_an_installed_s3fs_without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    s3fs = pytest.importorskip("s3fs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(LakeError, match=r"NoCredentialsError.*: set the account .*AWS_ACCESS_KEY_ID"):
        Lake("s3://bucket/lake").check_writable()


# --- files that fail when they are open


def test_a_file_that_fails_while_it_is_read_is_an_error_of_the_lake(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: Any = written().open(table_path("studies", "A"))
    for name in ("read", "seek"):
        monkeypatch.setattr(opened._target._target, name, _raising(exception("ClientPayloadError", "cut")), False)
    with pytest.raises(LakeError, match=r"cannot read tables/studies/.* \(ClientPayloadError: cut\)"):
        opened.read(10)
    with pytest.raises(LakeError, match=r"cannot read tables/studies/"):
        pq.read_schema(opened)


def test_an_open_file_of_a_disk_is_read_as_ever(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    lake.put_bytes("x", b"12345")
    with lake.open("x") as file:
        assert (file.read(2), file.seek(1), file.read(), file.tell()) == (b"12", 1, b"2345", 5)
    assert file.closed


def _raising(error: Exception) -> Callable[..., object]:
    def call(*_: object, **__: object) -> object:
        raise error

    return call


# --- an answer that did not come is not the answer "no"


def test_a_store_that_does_not_answer_is_not_an_empty_lake() -> None:
    lake = written()

    def down(call: str) -> Exception | None:
        return ConnectionResetError(errno.ECONNRESET, "reset") if call in ("info", "open") else None

    with failing(down), pytest.raises(LakeError, match="reset"):
        lake.write_table(STUDIES, NONE, "A")
    assert lake.count_rows(STUDIES, "A") == 1, "the table was replaced by an empty one"


@pytest.mark.parametrize("name", ["loop", "x" * 300], ids=["symlinks in a circle", "a long name"])
def test_a_folder_that_cannot_be_read_is_not_an_empty_one(tmp_path: Path, name: str) -> None:
    lake = Lake(str(tmp_path))
    lake.put_bytes("images/a/1", b"1")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for use in (lake.sizes, lake.names_in, lake.read_bytes, lake.open):
        with pytest.raises(LakeError, match=r"cannot (list|read) .*\((Too many levels|File name too long)"):
            use(f"{name}/a")
    assert lake.sizes("images") == {"images/a/1": 1}
    assert lake.sizes("nothing") == lake.sizes("images/a/1/x") == {}


def test_a_subfolder_that_cannot_be_read_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = Lake(str(tmp_path))
    for path in ("images/a/1", "images/b/2"):
        lake.put_bytes(path, b"1")
    scan = os.scandir

    def scandir(path: str) -> object:
        if Path(path).name == "b":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(LakeError, match=r"cannot list images .*Permission denied"):
        lake.sizes("images")


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"format": 1e999}', b'{"format": null}', b'"\\ud800"'])
def test_a_format_that_makes_json_stumble_is_an_error_of_the_lake(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FORMAT_FILE).write_bytes(content)
    with pytest.raises(LakeError, match="does not state the format"):
        _ = Lake(str(tmp_path)).format


def test_a_table_of_other_types_is_an_error_of_the_lake(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"StudyDate": ["no day"], "PatientID": [[1]]}), sink)
    lake.put_bytes(table_path("studies", "A"), sink.getvalue())
    with pytest.raises(LakeError, match="cannot read tables/studies"):
        lake.read_table(STUDIES, "A")


# --- what is not the store's


@pytest.mark.parametrize("place", ["disk", "object store"])
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EPIPE, "of the caller"),
        ArchiveUnreachable("x"),
        SettingsError("x"),
        KeyError("x"),
        StopIteration(),
    ],
    ids=lambda e: type(e).__name__,
)
def test_an_error_of_the_caller_is_not_one_of_the_lake(place: str, error: Exception, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path) if place == "disk" else new_address())
    lake.put_bytes("x", b"x")
    blocks: list[Callable[[], AbstractContextManager[object]]] = [
        lambda: lake.lock(Lock.CHANGES, "A"),
        lake.workspace,
        lambda: lake.open("x"),
    ]
    for block in blocks:
        with pytest.raises(type(error)) as raised, block():
            raise error
        assert raised.value is error
    assert lake.names_in(".staging/locks") == [] or place == "disk"


def test_an_error_of_the_archive_while_pieces_are_written_is_not_one_of_the_lake(tmp_path: Path) -> None:
    error = ArchiveUnreachable("x")
    with pytest.raises(ArchiveUnreachable) as raised:
        Lake(str(tmp_path)).write_pieces(STUDIES, map(_raising(error), [1]), "A")
    assert raised.value is error


def test_a_file_system_without_locks_is_an_error_of_the_lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = NotImplementedError("FileSystem does not appear to support flock")
    monkeypatch.setattr("nbia_pipeline.lake.lock.FileLock.acquire", _raising(error))
    with (
        pytest.raises(LakeError, match=r"cannot lock .*NotImplementedError: .*flock"),
        Lake(str(tmp_path)).lock(Lock.CHANGES, "A"),
    ):
        pass


# --- secrets


SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


@pytest.mark.parametrize(
    "error",
    [
        exception("ClientError", f"the key {SECRET} is wrong"),
        PermissionError(f"the key {SECRET} is wrong"),
        PermissionError(errno.EACCES, f"the key {SECRET} is wrong"),
        exception("ProxyConnectionError", f"https://me:{SECRET}@proxy:3128 refuses"),
        exception("HTTPClientError", f"GET http://h/b?X-Amz-Security-Token={SECRET}&X-Amz-Signature={SECRET}"),
        UnicodeEncodeError("latin-1", SECRET + "Ж", 40, 41, "ordinal not in range"),
    ],
    ids=["other", "permission", "with number", "proxy", "signed URL", "codec"],
)
def test_a_secret_that_a_store_quotes_is_in_no_text(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    outer = exception("WrapperError", "of the package")
    outer.__cause__ = error
    for raised_by_store in (error, outer):
        with failing(lambda _, e=raised_by_store: e), pytest.raises(LakeError, match="cannot write") as raised:  # type: ignore[misc]
            Lake(new_address()).check_writable()
        assert SECRET not in shown(raised.value)
        assert SECRET[:20] not in str(raised.value)


def test_an_answer_that_means_something_means_the_same_without_its_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", SECRET)
    with failing(lambda _: FileNotFoundError(f"no {SECRET}")):
        assert Lake(new_address()).read_bytes("x") is None


# --- a lock's heartbeat


def test_a_heartbeat_that_fails_neither_kills_its_thread_nor_is_forgotten(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    beats = threading.Event()
    lake = written()
    lake._store._locks.timings = LockTimings(beat=0.01)  # type: ignore[union-attr]

    def down(call: str) -> Exception | None:
        if threading.current_thread().name == "nbia-lock":
            beats.set()
        return exception("EndpointConnectionError", "no route") if call == "pipe_file" else None

    with lake.lock(Lock.CHANGES, "A") as expect_held:
        expect_held()
        with failing(down):
            assert beats.wait(10)
            _until(lambda: "no heartbeat of the locks" in caplog.text)
            with pytest.raises(
                LakeError, match=r"cannot lock .*EndpointConnectionError: no route\): check the address"
            ):
                expect_held()
        expect_held()  # the store answers again: the lock was never lost
    assert lake.names_in(".staging/locks") == []


def _until(true: Callable[[], bool]) -> None:
    wait = threading.Event()
    for _ in range(1000):
        if true():
            return
        wait.wait(0.01)
    pytest.fail("it never happened")
