"""The calls for files and digests, and bodies whose first bytes show whether they are what is due: a zip, a DICOM file.

What is not is no fault of the series: a proxy, a login page or a limit on requests answered in the archive's place.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, cast

import requests

from nbia_pipeline.archive.answers import decoded
from nbia_pipeline.archive.bounds import CHUNK_BYTES, ZIP_CHUNK_BYTES
from nbia_pipeline.archive.calls import Argument, Calls
from nbia_pipeline.archive.errors import BadAnswer
from nbia_pipeline.archive.transport import chunks_of
from nbia_pipeline.schema.digests import padded

T = TypeVar("T")

# How a zip begins: with an entry, or with its end; two markers for one of many parts, or of many bytes.
_ZIPS = (b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\7\x08")
_CONTROL = frozenset(range(32)) - frozenset(b"\t\n\f\r")
_LOOKED_AT = 512
_DICM_AT = 128

_LEVELS = ({"series_uid"}, {"study_uid"}, {"patient_id", "collection"}, {"collection"})


class EmptyBody(BadAnswer):
    """A good status, and not a byte with it, where a file is due."""


def zip_of(answer: requests.Response) -> Iterator[bytes]:
    """Return the chunks of a zip.

    Raises:
        EmptyBody: there is nothing in it.
        BadAnswer: it begins like no zip; worth another try.
    """
    first, chunks = _peek(answer, _LOOKED_AT, ZIP_CHUNK_BYTES)
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


def _peek(answer: requests.Response, count: int, size: int = CHUNK_BYTES) -> tuple[bytes, Iterator[bytes]]:
    """Return the first bytes, at least `count` where there are so many, and the chunks with these in front."""
    chunks = chunks_of(answer, size)
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


class Downloads(Calls):
    """The calls for files and digests."""

    def image(self, series_uid: str, read: Callable[[Iterator[bytes]], T], *, new_file_names: bool = False) -> T:
        """Download the files of a series and their ``LICENSE``, as one zip without digests: getImage.

        Nothing in it shows whether it is complete (server): prefer :meth:`image_with_md5`.

        Args:
            read: as for :meth:`image_with_md5`.
            new_file_names: name the files by acquisition and instance, like ``1-07.dcm``, rather than by a
                counter over no particular order.

        Raises:
            NotAvailable: unknown, hidden or forbidden; the archive does not distinguish them.
        """
        names = "Yes" if new_file_names else None
        return self._bytes("image", read, zip_of, series_uid=series_uid, new_file_names=names)

    def image_with_md5(self, series_uid: str, read: Callable[[Iterator[bytes]], T]) -> T:
        """Download the files of a series and ``md5hashes.csv``, as one zip.

        Args:
            read: takes the bytes; what it returns is returned. If the stream breaks, it is called again from the
                first byte, so it must start from scratch.

        Raises:
            NotAvailable: unknown, hidden or forbidden; the archive does not distinguish them.
        """
        return self._bytes("image_with_md5", read, zip_of, series_uid=series_uid)

    def dcm_image(self, series_uid: str, read: Callable[[Iterator[bytes]], T]) -> T:
        """Download the files of a series, ``md5hashes.csv`` and its annotation files, in this order, as one zip.

        The annotation files have the base names of their stored files; where one is missing, the zip ends before it
        and closes properly (server).

        Args:
            read: as for :meth:`image_with_md5`.

        Raises:
            NotAvailable: unknown, hidden or forbidden; the archive does not distinguish them.
        """
        return self._bytes("dcm_image", read, zip_of, series_uid=series_uid)

    def single_image(self, series_uid: str, sop_instance_uid: str, read: Callable[[Iterator[bytes]], T]) -> T:
        """Download one DICOM file.

        Args:
            read: as for :meth:`image_with_md5`.

        Raises:
            ServerError: the archive does not have the file (server: a missing file is a 500).
        """
        return self._bytes("single_image", read, file_of, series_uid=series_uid, sop_instance_uid=sop_instance_uid)

    def download(self, series_uid: str, directory: str | Path) -> list[Path]:
        """Fetch a series into ``<directory>/<series_uid>``, verified as in a lake, and return the paths of its files.

        Every file has the MD5 that the archive has of it, is DICOM and of this series; their number and size are those
        that the archive states, or it lists the same instances. The directory appears when all of this is so; one of
        an earlier download is replaced. Needs the packages filelock and fsspec.

        Raises:
            NotAvailable: the archive lists no such series, or does not send it.
            BadAnswer: what it sends cannot be verified.
            LakeError: the directory cannot be written.
        """
        # Here, because the client knows nothing of disks; only who calls this imports what does.
        from nbia_pipeline.mirror.download import download_series

        return download_series(cast(Any, self), series_uid, directory)

    def md5_of_image(self, sop_instance_uid: str) -> str | None:
        """Return the MD5 that the archive has for one file: 32 lower-case digits; None if it has none to show.

        None stands for an unknown, hidden or forbidden image as well as for one without a digest (server).
        """
        return self._digest("md5_of_image", sop_instance_uid=sop_instance_uid)

    def md5_hierarchy(
        self,
        *,
        series_uid: str | None = None,
        study_uid: str | None = None,
        patient_id: str | None = None,
        collection: str | None = None,
    ) -> str | None:
        """Return the digest of a series, a study, a patient or a collection; None where nothing is found.

        The digest of a series is the MD5 of the sorted MD5s of its files as they are stored, joined; each level above
        is computed in the same way from the one below. The digest of a series is the same for every account and there
        even if it is hidden; that of a collection is computed for the guest and up to 100 minutes old (server).

        Args:
            series_uid: alone.
            study_uid: alone.
            patient_id: PatientID, together with its collection.

        Raises:
            ValueError: another combination of arguments.
        """
        levels = {"series_uid": series_uid, "study_uid": study_uid, "patient_id": patient_id, "collection": collection}
        given: dict[str, Argument] = {name: value for name, value in levels.items() if value is not None}
        if set(given) not in _LEVELS:
            raise ValueError("name a series, or a study, or a collection, or a patient with its collection")
        return self._digest("md5_hierarchy", **given)

    def _digest(self, name: str, **arguments: Argument) -> str | None:
        def read(chunks: Iterator[bytes]) -> str | None:
            text = decoded(b"".join(chunks)).lstrip("\ufeff").strip()
            digest = padded(text)
            if text and digest is None:
                what = f"the answer is not an MD5, it begins with {text[:80]!r}: check base_url"
                raise BadAnswer(what, retryable=True, arguments=("base_url",))
            return digest

        return self._bytes(name, read, **arguments)
