"""The layout of a lake: its format, paths from names, and names from paths.

All paths are relative to the lake, with ``/``. A name becomes one path segment, percent-encoded as Hive
does wherever a character is unsafe; readers that know Hive partitioning decode it again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container
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
RUNS = f"{STAGING}/runs"
"""What the steps of Dagster's runs hand to each other: ``<run>/<step>/<output>.json``."""
EARLIER = f"{STAGING}/earlier"
"""Files of tables that were replaced last, where no reader of the tables looks."""
TABLES = "tables"
IMAGES = "images"
ANNOTATIONS = "annotations"
PREVIEWS = "previews"
PART = "part-0.parquet"
PARTITION = "Collection"
"""The column by which tables are partitioned."""
EMPTY_PARTITION = f"{PARTITION}=~empty"
"""See :func:`empty_part_path`; :func:`encode` never makes a ``~``, so that no collection can have this name."""
NO_COLLECTION = "~archive"
"""In the place of a collection: what is about the entire archive, in a table that is partitioned by collection."""

# A file system takes 255 bytes in a name, and the names of partitions, locks and files add some to an encoded one.
NAME_BYTES = 230
# The names of the longest licenses would have more.
LICENSE_NAME_CHARACTERS = 200
ANNOTATION_NAME_CHARACTERS = 200

_WORDS_WITH_A_TYPE = frozenset(
    "null none nil na nan nat true false t f yes no y n on off inf infinity epoch now today tomorrow yesterday".split()
)

_PART = re.compile(r"part-(0|[1-9]\d{0,8})\.parquet")
_UNSAFE = re.compile(rb"[^A-Za-z0-9._-]")

# What file managers, file systems and editors leave in any folder. In lower case; `*` stands for anything.
_BY_FILE_MANAGERS = ".ds_store ._* .directory thumbs.db ehthumbs.db desktop.ini"
_BY_OTHERS = (
    ".nfs* .fuse_hidden* .smbdelete* .snapshot .zfs lost+found .fseventsd .spotlight-v100 .trash* .temporaryitems "
    ".apdisk .appledouble .localized @eadir #recycle #snapshot $recycle.bin .~lock.* .*.swp ~$*"
)


def _any_of(names: str) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(name).replace(r"\*", ".*") for name in names.split()))


_FILE_MANAGERS = _any_of(_BY_FILE_MANAGERS)
_FOREIGN = _any_of(f"{_BY_FILE_MANAGERS} {_BY_OTHERS}")


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
    """Return the name behind a path segment; of a folder that is not the lake's own, one that nothing else has."""
    return unquote(segment, errors="replace")


def table_path(table: str, collection: str | None = None, part: int = 0) -> str:
    """Return the path of a table's file, or of one collection's file of it; of a table in shards, of one part."""
    partition = f"/{PARTITION}={_as_partition(collection)}" if collection is not None else ""
    return f"{TABLES}/{table}{partition}/part-{part}.parquet"


def part_of(name: str) -> int | None:
    """Return the number of the part of a table that is in a file of that name, None if it is another file."""
    number = _PART.fullmatch(name)
    return int(number[1]) if number else None


def earlier_path(path: str) -> str:
    """Return the path of the file that the file of a table replaced last."""
    return EARLIER + path.removeprefix(TABLES)


def _as_partition(collection: str) -> str:
    """Return the segment of a collection in the path of its tables.

    DuckDB before 2.0 takes the word ``null``, in any case, for no name; not if a letter of it is encoded.
    """
    if collection == NO_COLLECTION:
        return collection
    segment = encode(collection)
    return f"%{ord(segment[0]):02X}{segment[1:]}" if segment.lower() == "null" else segment


def collection_of(folder: str) -> str | None:
    """Return the collection whose part of a table is in a folder of that name, None if it is another folder."""
    key, equals, segment = folder.partition("=")
    return decode(segment) if key == PARTITION and equals and folder != EMPTY_PARTITION else None


def empty_part_path(table: str) -> str:
    """Return the path of the part without rows that makes readers take names of collections for text.

    Readers guess the type of what is in a path, from all paths of a table: of ``Collection=007`` alone, a number. One
    that can only be text settles it for all of them (pandas, PyArrow, Polars, DuckDB).
    """
    return f"{TABLES}/{table}/{EMPTY_PARTITION}/{PART}"


def looks_like_text(collection: str) -> bool:
    """Return whether no reader can take the name of a collection for a number, a day, a truth value or null."""
    return collection == NO_COLLECTION or (collection[0].isalpha() and collection.lower() not in _WORDS_WITH_A_TYPE)


def collection_path(collection: str) -> str:
    """Return the path of the directory of a collection's images."""
    return f"{IMAGES}/{encode(collection)}"


def series_path(collection: str, patient_id: str, study_uid: str, series_uid: str) -> str:
    """Return the path of the directory of a series' files."""
    return "/".join([collection_path(collection), *(encode(n) for n in (patient_id, study_uid, series_uid))])


def annotations_path(collection: str, patient_id: str, study_uid: str, series_uid: str) -> str:
    """Return the path of the directory of a series' annotation files.

    It is in a tree of its own, beside that of the images, so that a directory of images contains nothing else.
    """
    return ANNOTATIONS + series_path(collection, patient_id, study_uid, series_uid).removeprefix(IMAGES)


def annotation_name(name: str, taken: Container[str] = ()) -> str:
    """Return the name of an annotation file in its directory, which still ends like the archive's.

    The archive's names can be anything: a path, the same twice, too long for a file system. :func:`encode` never makes
    a ``~``, so what is appended after one makes no other name.

    Args:
        name: as the archive sends it.
        taken: case-folded names that the directory has already; some file systems ignore case.
    """
    segment = _encoded(name or "unnamed")
    if len(segment) > ANNOTATION_NAME_CHARACTERS:
        digest = hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()
        segment = f"{segment[: ANNOTATION_NAME_CHARACTERS - 40]}~{digest[:8]}~{segment[-30:]}"
    stem, dot, suffix = segment.rpartition(".")
    if not stem:
        stem, dot, suffix = segment, "", ""
    free, number = segment, 1
    while free.casefold() in taken:
        number += 1
        free = f"{stem}~{number}{dot}{suffix}"
    return free


def hand_over_path(run_id: str, step: str, *output: str) -> str:
    """Return the path of what a step of a run of Dagster hands to later steps; `output` are its name and key."""
    return f"{RUNS}/{encode(run_id)}/{encode(step)}/{encode('.'.join(output))}.json"


def contact_sheet_path(collection: str) -> str:
    """Return the path of the picture that shows what a collection's images look like."""
    return f"{PREVIEWS}/Collection={encode(collection)}/contact-sheet.png"


def instance_name(sop_instance_uid: str) -> str:
    """Return the name of an instance's file."""
    return f"{encode(sop_instance_uid)}.dcm"


def is_foreign(path: str) -> bool:
    """Return whether a file is one that others are known to leave in any folder, such as ``.DS_Store``.

    It is never a sign of damage, and never deleted unless its folder is.

    Args:
        path: of the file below a folder of the lake: one name, or several with ``/``. Names that the lake itself gives
            must not be asked about: a PatientID can be ``.nfs``.
    """
    return path.endswith("~") or any(_FOREIGN.fullmatch(name.lower()) for name in path.split("/"))


def is_folder_note(name: str) -> bool:
    """Return whether a file is what a file manager notes about a folder and its files: nothing without these."""
    return _FILE_MANAGERS.fullmatch(name.lower()) is not None


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
