"""What can go wrong with a lake, and what to do about it."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from nbia_pipeline.address import is_uri, without_secrets
from nbia_pipeline.lake.filesystem import StorageError, codes_of, kinds_of, safe_text
from nbia_pipeline.text import TextError

# Where the file systems find their account, and their address.
_ACCOUNT = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_STORAGE_CONNECTION_STRING",
}
_ENDPOINT = {"s3": "AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, and AWS_REGION"}
_OF_DISK = {
    errno.EXDEV: "a lake must be on one file system: none of its folders may be a link to another one, or a mount",
    errno.EISDIR: "it should be a file: move the folder away",
}
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_SAME = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az", "adl": "az"}

# What S3 says by a code (https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html), or botocore by a class,
# and what to do then; {store} is where, and {bucket} its bucket. The first that fits.
_OF_S3 = (
    ("InvalidAccessKeyId", "{store} does not know the access key: check AWS_ACCESS_KEY_ID, or that of AWS_PROFILE"),
    (
        "SignatureDoesNotMatch",
        "the secret key does not belong to the access key, says {store}: check AWS_SECRET_ACCESS_KEY, or that of "
        "AWS_PROFILE",
    ),
    (
        "ExpiredToken InvalidToken TokenRefreshRequired",
        "the session of the account has expired, says {store}: renew AWS_SESSION_TOKEN, or the session of AWS_PROFILE",
    ),
    (
        "RequestTimeTooSkewed RequestExpired",
        "the clock of this machine differs too much from that of {store}: set the clock of this machine",
    ),
    (
        "NoSuchBucket InvalidBucketName",
        "{store} has no bucket {bucket}: check that the bucket exists, and its name in NBIA_LAKE, and that "
        "AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL leads to its store",
    ),
    (
        "PermanentRedirect TemporaryRedirect AuthorizationHeaderMalformed IllegalLocationConstraintException 301 307",
        "the bucket {bucket} is in another region: set AWS_REGION to that of the bucket, and AWS_ENDPOINT_URL_S3 or "
        "AWS_ENDPOINT_URL, if there is one, to its store",
    ),
    (
        "AccessDenied AllAccessDisabled AccountProblem NotSignedUp",
        "{store} does not allow the account to do that in the bucket {bucket}: let it read, write, delete and list "
        "there (s3:GetObject, s3:PutObject, s3:DeleteObject, s3:ListBucket), or set another account (AWS_ACCESS_KEY_ID "
        "and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)",
    ),
    (
        "BadDigest InvalidDigest XAmzContentChecksumMismatch XAmzContentSHA256Mismatch",
        "what {store} received is not what was sent to it: run again; if it happens again, suspect the memory of this "
        "machine, or what is between it and the store",
    ),
    (
        "SSLError",
        "no secure connection to {store}: check whether its address begins with https:// or http:// "
        "(AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL), and its certificate (AWS_CA_BUNDLE)",
    ),
    (
        "EndpointConnectionError ConnectTimeoutError ReadTimeoutError FSTimeoutError NoAnswer",
        "check the address of the store, which is {store} (AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, and AWS_REGION), "
        "and your connection, or try again later",
    ),
    (
        "NoCode ResponseParserError NoStore",
        "the server at {store} does not speak S3: check AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL",
    ),
)

# By the names of classes, outermost first, and then by the text: the packages below fsspec need not be installed.
_NO_ACCOUNT = re.compile("[Cc]redential|Authenticat|Profile|Token|SSO|Refresh")
_NO_ANSWER = re.compile("Connect|Endpoint|Time[do]?[Oo]ut|gaierror|DNS|SSL|ServiceRequest|Transport")
_DENIED = re.compile("Permission|Denied|Forbidden|Unauthorized")
_TEXT_OF_NO_ACCOUNT = re.compile("credential|access key id|account_name|connection_string|token has expired", re.I)
_TEXT_OF_NO_ANSWER = re.compile("endpoint|timed out|server error|unavailable|slow ?down|reduce your request", re.I)
_TEXT_OF_DENIED = re.compile(r"denied|forbidden|unauthorized|not authorized|\b40[13]\b", re.I)


REBUILD = "`nbia-pipeline run` rebuilds the table, and so does `nbia-pipeline verify --repair`"
"""What to do about a table that is damaged or missing."""


class LakeError(TextError):
    """The lake cannot be read or written; the text says where, why and what to do.

    Attributes:
        arguments: names of the arguments to check, ``("lake",)`` where the address of the lake may be wrong.
    """

    def __init__(self, text: str, *, arguments: tuple[str, ...] = ()) -> None:
        super().__init__(text)
        self.arguments = arguments


class DamagedFile(LakeError):
    """A file of the lake was read, and does not contain what was written to it; the text names it.

    What cannot be read at all, such as a store that does not answer or a disk that fails, is another LakeError: it says
    nothing about the content, so nothing may be replaced for it.
    """


class WouldEmpty(LakeError):
    """A table that has rows would be replaced by one without rows; it was left as it was."""


@contextmanager
def content_of(file: str, what_to_do: str, problem: str = "is damaged") -> Iterator[None]:
    """Turn an error about the content of a small file, inside the block that takes it apart, into ours.

    Args:
        file: address of the file.
        what_to_do: about it, as an imperative.
        problem: what is wrong with it, as a predicate.

    Raises:
        DamagedFile: the content is not what was written.
    """
    try:
        yield
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as e:
        raise DamagedFile(f"{file} {problem} ({reason(e)[:200]}): {what_to_do}") from e


@contextmanager
def content_of_table(path: str, lake: str) -> Iterator[None]:
    """Turn an error about the content of a table's file, inside the block that takes it apart, into ours.

    Errors of the store must not reach the block: Arrow's own are OSErrors without a number.

    Args:
        path: of the file, relative to the lake.
        lake: address of the lake.

    Raises:
        DamagedFile: the file is no table, or not this one.
        LakeError: there is not enough memory for it.
    """
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
        what = f"cannot read {path} in the lake {lake} ({reason(e)[:300]})"
        if isinstance(e, MemoryError):
            raise LakeError(f"{what}: there is too little memory", arguments=("lake",)) from e
        raise DamagedFile(f"{what}: the file is damaged: {REBUILD}", arguments=("lake",)) from e


def reason(error: BaseException) -> str:
    """Return in a few words what happened, without secrets."""
    if isinstance(error, OSError) and error.strerror:
        return safe_text(OSError(error.strerror))
    kind = "" if isinstance(error, StorageError) else f"{type(error).__name__}: "
    return f"{kind}{' '.join(safe_text(error).split())}"


def remedy(error: BaseException, address: str) -> str:
    """Return what to do about an error of the store at `address`."""
    if not is_uri(address):
        number = error.errno if isinstance(error, OSError) else 0
        return _OF_DISK.get(number or 0, "check that you may write there and that there is room")
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return f"files are unpacked in {tempfile.gettempdir()} first: make room there, or set TMPDIR"
    return _remedy_of_store(error, address)


def _remedy_of_store(error: BaseException, address: str) -> str:
    scheme = address.partition("://")[0]
    store = _SAME.get(scheme, scheme)
    account = _ACCOUNT.get(store, "as its fsspec package expects it")
    endpoint = f" ({_ENDPOINT[store]})" if store in _ENDPOINT else ""
    set_account = f"set the account of the store ({account})"
    check_account = f"check that the account of the store ({account}) may read and write there"
    check_address = f"check the address of the store{endpoint} and your connection, or try again later"
    if store == "s3" and (known := _remedy_of_s3(error, address)):
        return known
    for kind in kinds_of(error):
        if _NO_ACCOUNT.search(kind):
            return set_account
        if _NO_ANSWER.search(kind):
            return check_address
        if kind == "FileNotFoundError":
            return "check that the bucket exists, and its name"
        if _DENIED.search(kind):
            return set_account if _TEXT_OF_NO_ACCOUNT.search(str(error)) else check_account
    if _TEXT_OF_NO_ACCOUNT.search(str(error)):
        return set_account
    if _TEXT_OF_NO_ANSWER.search(str(error)):
        return check_address
    if _TEXT_OF_DENIED.search(str(error)):
        return check_account
    return f"{check_account}, and its address{endpoint}"


def _remedy_of_s3(error: BaseException, address: str) -> str:
    said = {*kinds_of(error), *codes_of(error)}
    where = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    store = f"the store at {without_secrets(where)}" if where else "the store, as no AWS_ENDPOINT_URL_S3 is set,"
    bucket = address.partition("://")[2].partition("/")[0]
    for names, what in _OF_S3:
        if not said.isdisjoint(names.split()):
            return what.format(store=store, bucket=bucket)
    return ""
