"""Bodies of which the first bytes show whether they are what is due: a zip, a DICOM file.

What is not is no fault of the series: a proxy, a login page or a limit on requests answered in the archive's place.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from itertools import chain

import requests

from nbia_pipeline.archive.errors import BadAnswer
from nbia_pipeline.archive.transport import chunks_of

# How a zip begins: with an entry, or with its end; two markers for one of many parts, or of many bytes.
_ZIPS = (b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\7\x08")
_CONTROL = frozenset(range(32)) - frozenset(b"\t\n\f\r")
_LOOKED_AT = 512
_DICM_AT = 128


class EmptyBody(BadAnswer):
    """A good status, and not a byte with it, where a file is due."""


def zip_of(answer: requests.Response) -> Iterator[bytes]:
    """Return the chunks of a zip.

    Raises:
        EmptyBody: there is nothing in it.
        BadAnswer: it begins like no zip; worth another try.
    """
    first, chunks = _peek(answer, _LOOKED_AT)
    start = first.removeprefix(codecs.BOM_UTF8).lstrip()  # some servers put them before everything
    if not first:
        raise EmptyBody("a zip was expected, and an empty answer arrived: try again later", status=answer.status_code)
    if not start.startswith(_ZIPS):
        raise _instead(answer, first, "a zip")
    return chunks


def file_of(answer: requests.Response) -> Iterator[bytes]:
    """Return the chunks of a DICOM file; whether it is one is up to who reads it.

    Raises:
        BadAnswer: it is a text that nobody calls a DICOM file; worth another try.
    """
    first, chunks = _peek(answer, _LOOKED_AT)
    # A preamble may hold anything, a text as well. Without one, a DICOM file begins with a number: a control character.
    text = first[_DICM_AT : _DICM_AT + 4] != b"DICM" and not _CONTROL.intersection(first[:_LOOKED_AT])
    if first and text and _kind(answer) != "application/dicom":
        raise _instead(answer, first, "a DICOM file")
    return chunks


def _peek(answer: requests.Response, count: int) -> tuple[bytes, Iterator[bytes]]:
    """Return the first bytes, at least `count` where there are so many, and the chunks with these in front."""
    chunks = chunks_of(answer)
    first = b""
    for chunk in chunks:
        first += chunk
        if len(first) >= count:
            break
    return first, chain([first] if first else [], chunks)


def _kind(answer: requests.Response) -> str:
    return answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()[:80]


def _instead(answer: requests.Response, first: bytes, due: str) -> BadAnswer:
    kind = _kind(answer) or "an answer of no stated type"
    return BadAnswer(
        f"{due} was expected, and {kind} arrived: a proxy, a login page or a limit on requests may have answered in "
        "the archive's place. Try again later; if it stays, check base_url and your connection",
        body=" ".join(first[:4096].decode("utf-8", "replace").split()),
        status=answer.status_code,
        retryable=True,
        arguments=("base_url",),
    )
