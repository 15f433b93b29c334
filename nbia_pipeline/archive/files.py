"""Image files as streams of bytes, and the digests that the archive holds of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TypeVar

from nbia_pipeline.archive.calls import Argument, Caller
from nbia_pipeline.archive.errors import BadAnswer

T = TypeVar("T")

_MD5 = re.compile("[0-9a-fA-F]{32}")
_LEVELS = ({"series_uid"}, {"study_uid"}, {"patient_id", "collection"}, {"collection"})


class FileCalls(Caller):
    """The calls that send files and digests."""

    def image(self, series_uid: str, read: Callable[[Iterator[bytes]], T], *, new_file_names: bool = False) -> T:
        """Download the files of a series and their ``LICENSE``, as one zip without digests: getImage.

        Nothing in it tells whether it is whole (server): prefer :meth:`image_with_md5`.

        Args:
            series_uid: SeriesInstanceUID.
            read: as for :meth:`image_with_md5`.
            new_file_names: name the files by acquisition and instance, like ``1-07.dcm``, rather than by a
                counter over no particular order.

        Raises:
            NotAvailable: unknown, hidden or forbidden; the archive does not tell which.
        """
        return self._bytes("image", read, series_uid=series_uid, new_file_names="Yes" if new_file_names else None)

    def image_with_md5(self, series_uid: str, read: Callable[[Iterator[bytes]], T]) -> T:
        """Download the files of a series and ``md5hashes.csv``, as one zip.

        Args:
            series_uid: SeriesInstanceUID.
            read: takes the bytes and returns what this method shall return. Where the stream breaks it is
                called again from the first byte, so it must start afresh.

        Raises:
            NotAvailable: unknown, hidden or forbidden; the archive does not tell which.
        """
        return self._bytes("image_with_md5", read, series_uid=series_uid)

    def single_image(self, series_uid: str, sop_instance_uid: str, read: Callable[[Iterator[bytes]], T]) -> T:
        """Download one DICOM file; see :meth:`image_with_md5` for `read`.

        A missing file is a 500 (server), hence an ArchiveUnreachable after a few tries.

        Args:
            series_uid: SeriesInstanceUID.
            sop_instance_uid: SOPInstanceUID.
            read: as for :meth:`image_with_md5`.
        """
        return self._bytes("single_image", read, series_uid=series_uid, sop_instance_uid=sop_instance_uid)

    def md5_of_image(self, sop_instance_uid: str) -> str | None:
        """Return the MD5 that the archive holds of one file, in lower case; None where it shows none.

        None stands for an unknown, hidden or forbidden image as well as for one without a digest (server).

        Args:
            sop_instance_uid: SOPInstanceUID.
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

        The digest of a series is the MD5 of the sorted MD5s of its files, joined; each level above is made in
        the same way of the one below. A series is digested whoever asks and even if it is hidden; that of a
        collection is made for the guest and up to 100 minutes old (server).

        Args:
            series_uid: SeriesInstanceUID, alone.
            study_uid: StudyInstanceUID, alone.
            patient_id: PatientID, together with its collection.
            collection: name, as :meth:`collection_values` spells it.

        Raises:
            ValueError: another combination of arguments.
        """
        arguments = {"series_uid": series_uid, "study_uid": study_uid, "patient_id": patient_id}
        given: dict[str, Argument] = {
            name: value for name, value in {**arguments, "collection": collection}.items() if value is not None
        }
        if set(given) not in _LEVELS:
            raise ValueError("name a series, or a study, or a collection, or a patient with its collection")
        return self._digest("md5_hierarchy", **given)

    def _digest(self, name: str, **arguments: Argument) -> str | None:
        return self._text(name, _md5_or_nothing, **arguments)


def _md5_or_nothing(text: str) -> str | None:
    if text and not _MD5.fullmatch(text):
        raise BadAnswer(f"the answer is not an MD5, it begins {text[:80]!r}: check NBIA_ARCHIVE")
    return text.lower() or None
