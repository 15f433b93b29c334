"""Addresses that people write, and secrets in them: where a lake is, and what of a text must not be shown."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

HIDDEN = "***"

# The password of a URL, up to the last @ of the word: a key of AWS may contain a slash. A port is no password.
_PASSWORD = re.compile(r"(://[^/@\s:]*):(?!\d+[/?#])\S*@")
_QUERY = re.compile(
    r"([?&;][^=&\s]*(?:sig|token|secret|passw|credential|key)[^=&\s]*=)[^&\s'\"]+",
    re.IGNORECASE,
)
_LIKE_A_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(.?)")
_NOT_PRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_WITH_BUCKETS = frozenset("s3 s3a gs gcs az abfs abfss adl".split())
_NOT_IN_A_BASE = re.compile(r"[\s\\?#]")
_SCHEMES = _WITH_BUCKETS | frozenset("file local memory http https ftp sftp ssh smb hdfs webhdfs".split())
_EXAMPLES = "a directory or a URI such as s3://bucket/lake"


def without_secrets(text: str) -> str:
    """Return a text with stars for the passwords of its URLs, and for the keys and signatures of their queries."""
    return _QUERY.sub(rf"\1{HIDDEN}", _PASSWORD.sub(rf"\1:{HIDDEN}@", text))


def is_web_address(url: str | None) -> bool:
    """Return whether a URL names a host to ask by HTTP."""
    try:
        parts = urlsplit(url or "")
        port = parts.port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0


def is_base_url(url: str) -> bool:
    """Return whether a URL can have the path of a call appended to it."""
    return is_web_address(url) and not _NOT_IN_A_BASE.search(url)


def is_uri(address: str) -> bool:
    """Return whether an address of :func:`lake_address` is a URI; the others are directories."""
    return "://" in address


def lake_address(text: str) -> str:
    """Return the address of a lake as an absolute directory or a URI.

    A directory is taken literally: ``::``, ``%`` and colons within are parts of its name.

    Raises:
        ValueError: it is neither. The text is a predicate, like ``is empty: set it to a directory``.
    """
    if not text.strip():
        raise ValueError(f"is empty: set it to {_EXAMPLES}")
    text = text.strip() if is_uri(text) else text
    if without_secrets(text) != text:
        raise ValueError(
            "contains a password or a key, and would be shown with it: put that into the variables of the store, such "
            "as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or FSSPEC_SFTP_PASSWORD, and leave it out here"
        )
    if _NOT_PRINTABLE.search(text):
        raise ValueError(f"is {text!r}: leave out the control characters, and write it in UTF-8")
    return _uri(text) if is_uri(text) else _directory(text)


def _directory(text: str) -> str:
    found = _LIKE_A_SCHEME.match(text)
    if text.startswith("\\\\") or (found and len(found[1]) == 1 and found[2] in ("\\", "/")):
        raise ValueError(f"is {text!r}, a path of Windows: set it to {_EXAMPLES}")
    if found and (found[2] in ("/", "\\") or found[1].lower() in _SCHEMES):
        rest = text.partition(":")[2].lstrip("/\\")
        raise ValueError(
            f"is {text!r}: a URI has ://, like {found[1]}://{'/' * (found[1] == 'file')}{rest or 'bucket/lake'}; for a "
            f"directory of that name write ./{text}"
        )
    try:
        return str(Path(text).expanduser().absolute())
    except (RuntimeError, OSError) as e:  # no such user, or the working directory is gone
        raise ValueError(f"is {text!r} ({e}): set it to an absolute directory") from None


def _uri(text: str) -> str:
    scheme, _, rest = text.partition("://")
    if not scheme:
        raise ValueError(f"is {text!r}: a URI begins with its scheme; set it to {_EXAMPLES}")
    if "::" in text:
        raise ValueError(f"is {text!r}: a URI with :: is a chain of file systems, and a lake is in one: leave that out")
    if scheme in ("file", "local"):
        if not rest.startswith("/"):
            raise ValueError(f"is {text!r}: a file URI has three slashes, like file:///data/lake")
        return str(Path(rest))
    if scheme in _WITH_BUCKETS and not rest.partition("/")[0]:
        raise ValueError(f"is {text!r}, which names no bucket: set it to a URI such as {scheme}://bucket/lake")
    return text
