"""The layout of a lake: its format, paths from names, and names from paths.

All paths are relative to the lake, with ``/``. A name becomes one path segment, percent-encoded as Hive
does wherever a character is unsafe; readers that know Hive partitioning decode it again.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from nbia_pipeline.lake.errors import LakeError

FORMAT = 2
"""The newest format of a lake that this version knows, and the one that it writes.

1: nbia-pipeline 0.1.0, which states no format.
2: ``image_series`` has columns for a newer version of a series that could not be fetched: RefreshFailedAt,
   NewerImageCount, NewerFileSize, NewerTimeStamp and NewerDateReleased.

A file that an older format left is read as it is: columns that it lacks are null.
"""

FORMAT_FILE = "lake.json"
STAGING = ".staging"
JOURNAL = f"{STAGING}/journal"
LOCKS = f"{STAGING}/locks"
TABLES = "tables"
IMAGES = "images"
PREVIEWS = "previews"
PART = "part-0.parquet"
NO_COLLECTION = "__HIVE_DEFAULT_PARTITION__"
"""The partition of rows that belong to no collection; readers with Hive partitioning take it for null."""

# A file system takes 255 bytes in a name, and the names of partitions, locks and files add some to an encoded one.
NAME_BYTES = 230
# The names of the longest licenses would have more.
LICENSE_NAME_CHARACTERS = 200

_UNSAFE = re.compile(rb"[^A-Za-z0-9._-]")


def encode(name: str) -> str:
    """Return `name` as one path segment.

    Everything outside ``[A-Za-z0-9._-]`` is percent-encoded byte by byte (UTF-8), and so is every dot of a
    name of dots alone, which would be a way up the tree.

    Raises:
        LakeError: the name is empty, or too long for a file system.
    """
    if not name:
        raise LakeError("an empty name cannot be part of a path in the lake")
    encoded = _encoded(name)
    if len(encoded) > NAME_BYTES:
        raise LakeError(
            f"the name {name[:40]!r}... cannot be part of a path in the lake: percent-encoded it has {len(encoded)} "
            f"bytes, and a folder or file takes {NAME_BYTES}"
        )
    return encoded


def _encoded(name: str) -> str:
    if not name.strip("."):
        return "%2E" * len(name)
    return _UNSAFE.sub(lambda m: f"%{m[0][0]:02X}".encode(), name.encode()).decode("ascii")


def decode(segment: str) -> str:
    """Return the name behind a path segment."""
    return unquote(segment, errors="strict")


def table_path(table: str, collection: str | None = None) -> str:
    """Return the path of a table's file, or of one collection's file of it."""
    partition = f"/Collection={encode(collection)}" if collection is not None else ""
    return f"{TABLES}/{table}{partition}/{PART}"


def collection_path(collection: str) -> str:
    """Return the path of the directory of a collection's images."""
    return f"{IMAGES}/{encode(collection)}"


def series_path(collection: str, patient_id: str, study_uid: str, series_uid: str) -> str:
    """Return the path of the directory of a series' files."""
    return "/".join([collection_path(collection), *(encode(n) for n in (patient_id, study_uid, series_uid))])


def contact_sheet_path(collection: str) -> str:
    """Return the path of the picture that shows what a collection's images look like."""
    return f"{PREVIEWS}/Collection={encode(collection)}/contact-sheet.png"


def instance_name(sop_instance_uid: str) -> str:
    """Return the name of an instance's file."""
    return f"{encode(sop_instance_uid)}.dcm"


def license_path(collection: str, license: str | None, digest: str = "") -> str:
    """Return the path of the text of a license, next to the patients of its collection.

    :func:`encode` never makes a ``~``, so that no PatientID can have this name.

    Args:
        collection: exact spelling.
        license: LicenseName, None or empty where there is none.
        digest: what distinguishes two licenses of one name; empty for the first.
    """
    parts = ["LICENSE", _encoded(license or "unnamed")[:LICENSE_NAME_CHARACTERS], *([digest] if digest else [])]
    return f"{collection_path(collection)}/{'~'.join(parts)}.txt"
