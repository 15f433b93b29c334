"""The content of an embedded archive: a row per series, the images, the accounts.

A catalog is plain data. The server answers every endpoint from it; the demo catalog and the index of the
Imaging Data Commons are two ways to fill it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa

from nbia_pipeline.schema.tables import TABLES

VISIBLE = 1

DIGESTS: Mapping[str, Callable[[str], str | None]] = {
    # Server: the older ingest stored the digest as a number, and a blank for none.
    "short": lambda digest: digest.lstrip("0"),
    "blank": lambda digest: " ",
    "null": lambda digest: None,
}
"""How a digest can be stored other than in full."""

_OF_TABLES = {
    column.name: pa.field(column.name, column.type)
    for table in ("series", "patients", "studies")
    for column in TABLES[table].columns
    if column.name != "SeriesCount"
}
CATALOG_SCHEMA: pa.Schema = pa.schema(
    [
        *_OF_TABLES.values(),
        pa.field("SOPClassUID", pa.string()),
        pa.field("AnnotationSize", pa.int64()),
        pa.field("PixelSpacing(mm)-Row", pa.string()),
        pa.field("SliceThickness(mm)", pa.string()),
        pa.field("Visibility", pa.int64()),
    ]
)
"""Columns of the wide table of a catalog: a row per series, with the columns of its patient and study."""


@dataclass(frozen=True)
class StoredInstance:
    """One image file of the archive.

    Attributes:
        sop_instance_uid: DICOM (0008,0018).
        sop_class_uid: DICOM (0008,0016).
        instance_number: DICOM (0020,0013).
        acquisition_number: DICOM (0020,0012), or None.
        size: bytes of the file.
    """

    sop_instance_uid: str
    sop_class_uid: str
    instance_number: int
    acquisition_number: int | None
    size: int


class ImageStore(Protocol):
    """The files of a catalog."""

    def instances(self, series_uid: str) -> Sequence[StoredInstance]:
        """Return the instances of a series by InstanceNumber; empty for a series without files."""

    def read(self, series_uid: str, sop_instance_uid: str) -> bytes:
        """Return the bytes of one DICOM file; raises KeyError if there is no such file."""

    def md5(self, series_uid: str, sop_instance_uid: str) -> str | None:
        """Return the MD5 of a file that the archive states (lower-case hex), or None if it states none."""


@dataclass(frozen=True)
class Account:
    """A person who may log in.

    Attributes:
        password: its password; the guest's is never compared.
        collections: names of the restricted collections that the account may see besides the public ones.
    """

    password: str
    collections: frozenset[str] = frozenset()


@dataclass(frozen=True)
class CollectionDescription:
    """What getCollectionDescriptions answers about a collection.

    Attributes:
        name: exact spelling of the collection.
        description: HTML.
        uri: DOI address.
        edited_ms: last edit, milliseconds since 1970-01-01 UTC.
    """

    name: str
    description: str
    uri: str
    edited_ms: int


@dataclass
class Catalog:
    """Everything an embedded archive serves.

    Attributes:
        series: table of schema :data:`CATALOG_SCHEMA`, one row per series.
        images: the files, or None where the catalog has tables only.
        restricted: names of the collections that only some accounts see.
        accounts: account by user name; the guest ``nbia_guest`` needs no entry.
        descriptions: descriptions of the collections by name.
        carts: UIDs of the series of each shared cart by name.
        annotations: annotation files of a series, contents by name, by SeriesInstanceUID; the sum of their sizes is
            its column ``AnnotationSize``.
        digests: how the digest of an image is stored where it is not stored in full, a key of :data:`DIGESTS`; by
            SOPInstanceUID, or by SeriesInstanceUID for all images of a series.
    """

    series: pa.Table
    images: ImageStore | None = None
    restricted: frozenset[str] = frozenset()
    accounts: Mapping[str, Account] = field(default_factory=dict)
    descriptions: Mapping[str, CollectionDescription] = field(default_factory=dict)
    carts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    annotations: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)

    def md5(self, series_uid: str, sop_instance_uid: str) -> str | None:
        """Return the MD5 of a file as the archive has stored it, None if it has stored none."""
        stored = self.images.md5(series_uid, sop_instance_uid) if self.images is not None else None
        form = self.digests.get(sop_instance_uid) or self.digests.get(series_uid)
        return stored if form is None or stored is None else DIGESTS[form](stored)
