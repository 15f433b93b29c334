"""Real object stores: their refusals and races, the locks of a killed process, and their errors in our words."""

from __future__ import annotations

import datetime
import re
import signal
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

import botocore.auth
import fsspec
import pytest
from botocore.exceptions import ClientError

from nbia_pipeline.lake import Lake, LakeError, Lock
from nbia_pipeline.lake.filesystem import Guarded, translated, was_refused
from nbia_pipeline.lake.lock import LockTimings
from nbia_pipeline.lake.object_lock import ObjectLocks
from nbia_pipeline_tests.helpers.locks import all_at_once
from nbia_pipeline_tests.helpers.object_stores import READER, make_bucket, moto_server, seaweedfs
from nbia_pipeline_tests.helpers.sockets import answering_bytes
from nbia_pipeline_tests.helpers.stores import exception

s3fs = pytest.importorskip("s3fs")
QUICK = LockTimings(wait=60, poll=0.01)
Variables = dict[str, str]


@pytest.fixture(scope="module")
def _seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Variables]:
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as store:
        make_bucket(store, "lake")
        yield store


@pytest.fixture(scope="module")
def _moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Variables]:
    with moto_server(tmp_path_factory.mktemp("moto")) as store:
        make_bucket(store, "lake")
        yield store


@pytest.fixture(params=["seaweedfs", "moto"])
def address(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an empty lake in a store, whose variables are set."""
    yield from _lake_in(request.getfixturevalue(f"_{request.param}"), monkeypatch)


@pytest.fixture
def in_seaweedfs(_seaweedfs: Variables, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    yield from _lake_in(_seaweedfs, monkeypatch)


def _lake_in(store: Variables, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for variable, value in store.items():
        monkeypatch.setenv(variable, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield f"s3://lake/{uuid.uuid4().hex}"
    s3fs.S3FileSystem.clear_instance_cache()


def locks_of(address: str) -> ObjectLocks:
    """The locks of a lake, as a process of its own takes them."""
    fs, root = fsspec.core.url_to_fs(address, use_listings_cache=False)
    return ObjectLocks(Guarded(fs), f"{root}/.staging/locks", QUICK)


# --- refusals


def test_of_several_that_create_an_object_one_does_and_the_others_are_refused(address: str) -> None:
    fs, root = fsspec.core.url_to_fs(address)
    fs.connect()
    created: Counter[int] = Counter()
    together = threading.Barrier(3, timeout=60)

    def create(number: int) -> None:
        for turn in range(2):
            together.wait()
            try:
                translated(fs.pipe_file, f"{root}/{turn}", b"%d" % number, mode="create")
                created[turn] += 1
            except OSError as e:
                assert was_refused(e), repr(e)

    all_at_once(3, create)
    assert created == dict.fromkeys(range(2), 1)


def _s3(code: str, status: int, **more: str) -> Exception:
    answer = {"Error": {"Code": code, "Message": "x", **more}, "ResponseMetadata": {"HTTPStatusCode": status}}
    translate: Callable[[Exception], Exception] = s3fs.errors.translate_boto_error
    return translate(ClientError(answer, "PutObject"))


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (_s3("PreconditionFailed", 412, Condition="If-None-Match"), True),  # AWS, moto
        (_s3("PreconditionFailed", 412), True),  # SeaweedFS, MinIO
        (_s3("412", 412), True),
        (_s3("ConditionalRequestConflict", 409), True),
        (_s3("OperationAborted", 409), True),
        (_s3("AccessDenied", 403), False),
        (_s3("NoSuchBucket", 404), False),
        (_s3("InvalidBucketState", 409), False),
        (_s3("SlowDown", 503), False),
        (_s3("NotImplemented", 501), False),
        (FileExistsError("x"), True),  # gcsfs, adlfs
        (exception("HttpError", "x", code=412), True),  # gcsfs
        (exception("HttpError", "x", code=409), False),
        (exception("PreconditionFailed", "x", code=HTTPStatus.PRECONDITION_FAILED), True),  # google-api-core
        (exception("Conflict", "x", code=HTTPStatus.CONFLICT), False),
        (exception("ResourceExistsError", "x", status_code=409, error_code="BlobAlreadyExists"), True),  # azure-core
        (exception("HttpResponseError", "x", status_code=409, error_code="BlobAlreadyExists"), True),
        (exception("HttpResponseError", "x", status_code=412, error_code="LeaseIdMissing"), True),
        (exception("HttpResponseError", "x", status_code=409, error_code="ContainerBeingDeleted"), False),
        (OSError(22, "Invalid argument"), False),
    ],
    ids=lambda v: (
        f"{type(v).__name__} {getattr(v, '__cause__', None) or vars(v) or v}" if v not in (True, False) else ""
    ),
)
def test_a_refusal_is_recognized_by_classes_and_codes(error: Exception, refused: bool) -> None:
    try:
        translated(_raising, error)
    except OSError as e:
        assert was_refused(e) == refused
    else:
        pytest.fail("it was lost")


def _raising(error: Exception) -> None:
    raise error


def test_a_refusal_that_quotes_a_secret_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "xxxxxxxxxxxxxxx")
    error = ClientError({"Error": {"Code": "412", "Message": "xxxxxxxxxxxxxxx"}}, "PutObject")
    with pytest.raises(OSError, match=r"\*\*\*") as raised:
        translated(_raising, error)
    assert was_refused(raised.value)


# --- locks


def test_one_of_several_workers_holds_a_lock_at_a_time(address: str) -> None:
    inside: list[int] = []
    count: Counter[str] = Counter()

    def work(number: int) -> None:
        locks = locks_of(address)
        for _ in range(3):
            with locks.hold(f"{locks.folder}/a.lock") as expect_held:
                inside.append(number)
                count["most"] = max(count["most"], len(inside))
                expect_held()
                inside.remove(number)
                count["held"] += 1

    all_at_once(3, work)
    assert count == {"most": 1, "held": 9}
    assert Lake(address).names_in(".staging/locks") in ([], ["locks"])  # SeaweedFS remembers a folder for a while


_HOLDER = """
import contextlib, sys
from nbia_pipeline.lake import Lake, Lock
lake = Lake(sys.argv[1])
with contextlib.ExitStack() as stack:
    stack.enter_context(lake.lock(Lock.COLLECTION, "A"))
    for uid in "1234":
        stack.enter_context(lake.lock(Lock.SERIES, "A", uid))
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_locks_of_a_killed_process_of_this_machine_are_not_waited_for_and_nothing_is_left(
    in_seaweedfs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, in_seaweedfs], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout and holder.stdout.readline() == "held\n"
    lake = Lake(in_seaweedfs)
    lake._store._locks.timings = LockTimings(lease=1e9, wait=0)  # type: ignore[union-attr]
    with pytest.raises(LakeError, match=f"held by .*{holder.pid}"), lake.lock(Lock.COLLECTION, "A"):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    for lock, uid in ((Lock.COLLECTION, ""), (Lock.SERIES, "1")):
        with lake.lock(lock, "A", uid) as expect_held:
            expect_held()
    assert lake.sweep(set()) >= 3
    assert [name for name in lake.names_in(".staging/locks") if "." in name] == []


# --- errors in our words


ERRORS: dict[str, tuple[Variables, str, str]] = {
    "no account": ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "NoCredentialsError", "set the account of"),
    "half an account": (
        {"AWS_SECRET_ACCESS_KEY": ""},
        "missing: AWS_SECRET_ACCESS_KEY",
        "set the account of the store",
    ),
    "no such profile": ({"AWS_PROFILE": "x", "AWS_ACCESS_KEY_ID": ""}, r"profile \(x\)", "or AWS_PROFILE"),
    "wrong key": (
        {"AWS_ACCESS_KEY_ID": "wrong"},
        "access key ID",
        "{store} does not know .*: check AWS_ACCESS_KEY_ID,",
    ),
    "wrong secret": ({"AWS_SECRET_ACCESS_KEY": "not-the-secret"}, "signature", "{store}: check AWS_SECRET_ACCESS_KEY,"),
    "may only read": (
        {"AWS_ACCESS_KEY_ID": READER[0], "AWS_SECRET_ACCESS_KEY": READER[1]},
        "Access Denied",
        r"{store} does not allow the account to do that in the bucket lake: .*\(s3:GetObject.*AWS_PROFILE",
    ),
}


@pytest.mark.parametrize(("wrong", "said", "what"), ERRORS.values(), ids=ERRORS)
def test_an_account_that_is_wrong(
    wrong: Variables, said: str, what: str, in_seaweedfs: str, _seaweedfs: Variables, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in wrong.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    text = _error_of(in_seaweedfs)
    store = f"the store at {_seaweedfs['AWS_ENDPOINT_URL_S3']}"
    assert_said(text, in_seaweedfs, said, what.format(store=store))
    for secret in (_seaweedfs["AWS_SECRET_ACCESS_KEY"], READER[1], "not-the-secret"):
        assert secret not in text


def test_a_bucket_that_is_not_there(in_seaweedfs: str) -> None:
    for address in ("s3://elsewhere/lake", "s3://No_Name/lake"):
        bucket = address.split("/")[2]
        assert_said(
            _error_of(address), address, "bucket", f"has no bucket {bucket}: check .* and its name in NBIA_LAKE"
        )


def test_a_clock_that_is_wrong(in_seaweedfs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = botocore.auth.get_current_datetime
    ahead = datetime.timedelta(hours=1)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *args: now(*args) + ahead)
    assert_said(_error_of(in_seaweedfs), in_seaweedfs, "too large", "the clock of this machine differs too much from")


def test_an_endpoint_that_speaks_no_tls(
    in_seaweedfs: str, _seaweedfs: Variables, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = _seaweedfs["AWS_ENDPOINT_URL_S3"].replace("http:", "https:")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    what = f"no secure connection to the store at {endpoint}: .*AWS_CA_BUNDLE"
    assert_said(_error_of(in_seaweedfs), in_seaweedfs, "SSL", what)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://nowhere.invalid", "http://me:password@127.0.0.1:9"])
def test_an_endpoint_that_is_not_there(in_seaweedfs: str, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("nbia_pipeline.lake.object_store.ANSWER_SECONDS", 3)
    text = _error_of(in_seaweedfs)
    shown = endpoint.replace("password", r"\*\*\*")
    said = "Could not connect|no answer in 3 seconds"
    assert_said(text, in_seaweedfs, said, f"check the address of the store, which is the store at {shown} .*AWS_REGION")
    assert "password" not in text


def test_an_endpoint_that_does_not_answer(in_seaweedfs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbia_pipeline.lake.object_store.ANSWER_SECONDS", 0.2)
    with answering_bytes(lambda _: (threading.Event().wait(1) and b"") or b"") as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
        what = f"which is the store at http://127.0.0.1:{port} "
        assert_said(_error_of(in_seaweedfs), in_seaweedfs, "no answer in 0.2 seconds", what)


PAGE = b"<html><body>Welcome</body></html>"
OTHER_REGION = (
    b"<Error><Code>AuthorizationHeaderMalformed</Code><Message>the region 'us-east-1' is wrong; expecting 'eu-west-1'"
    b"</Message></Error>"
)


@pytest.mark.parametrize(
    ("status", "body", "what"),
    [
        (
            "200 OK",
            PAGE,
            "the server at the store at http://127.0.0.1:{port} does not speak S3: check AWS_ENDPOINT_URL_S3 or",
        ),
        ("404 Not Found", PAGE, "the server at the store at http://127.0.0.1:{port} does not speak S3: check"),
        ("403 Forbidden", PAGE, "the server at the store at http://127.0.0.1:{port} does not speak S3: check"),
        ("400 Bad Request", OTHER_REGION, "the bucket lake is in another region: set AWS_REGION"),
    ],
)
def test_what_answers_is_not_the_store(
    in_seaweedfs: str, status: str, body: bytes, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    with answering_bytes(lambda _: answer) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
        assert_said(_error_of(in_seaweedfs), in_seaweedfs, "", what.format(port=port))


def test_the_region_is_that_of_the_variable_of_other_tools_too(
    in_seaweedfs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-7")
    fs: Any = Lake(in_seaweedfs)._unchecked.fs
    fs.connect()
    assert fs.s3.meta.region_name == "eu-west-7"


def _error_of(address: str) -> str:
    with pytest.raises(LakeError) as raised:
        Lake(address).check_writable()
    assert raised.value.arguments == ("lake",)
    return str(raised.value)


def assert_said(text: str, address: str, said: str, what: str) -> None:
    assert re.fullmatch(rf"cannot write in the lake {address} \(.*({said}).*\): .*{what}.*", text), text
