"""MD5s as the archive stores them: leading zeros may be missing, and a blank stands for none (server)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable

_DIGITS = re.compile("[0-9a-fA-F]{1,32}")


def padded(stored: str) -> str | None:
    """Return a stored MD5 as 32 lower-case digits; None for a blank, and for what is not an MD5.

    Server: the older ingest stores the MD5 as a number, so that 1 in 16 has fewer digits.
    """
    text = stored.strip()
    return text.lower().zfill(32) if _DIGITS.fullmatch(text) else None


def series_md5(digests: Iterable[str]) -> str:
    """Return the digest of a series: MD5 of its files' MD5s, sorted and joined (server: getMD5Hierarchy)."""
    return hashlib.md5("".join(sorted(digests)).encode(), usedforsecurity=False).hexdigest()


def possible_series_md5s(digests: Collection[str]) -> set[str]:
    """Return what getMD5Hierarchy may return for files with these MD5s.

    Server: it joins the digests as they are stored. The lake does not keep how each one was stored, hence all padded
    and all without leading zeros; a series that has both kinds has another digest than these.

    Args:
        digests: as stored where that is known, else padded.
    """
    whole = [padded(digest) or digest for digest in digests]
    return {series_md5(form) for form in (digests, whole, [digest.lstrip("0") or "0" for digest in whole])}
