"""Where the files of a lake are kept: on a disk, or in an object store.

Both stores have the same methods, so that no caller asks which of the two it is. All paths are relative to the
lake, with ``/``. What goes wrong is an OSError: see :mod:`nbia_pipeline.lake.filesystem`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

import fsspec
from fsspec.implementations.local import LocalFileSystem

from nbia_pipeline.address import is_uri
from nbia_pipeline.lake.errors import LakeError, reason, remedy
from nbia_pipeline.lake.filesystem import Guarded, options_of, translated
from nbia_pipeline.lake.flush import Flush
from nbia_pipeline.lake.local_store import LocalStore
from nbia_pipeline.lake.object_store import ObjectStore

Store: TypeAlias = LocalStore | ObjectStore


_EXTRAS = {
    **dict.fromkeys(("s3", "s3a"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gcs"),
    **dict.fromkeys(("abfs", "abfss", "az"), "azure"),
}
"""The extra of this package that brings the file system of a scheme."""


def open_store(address: str, *, fsync: bool = True) -> Store:
    """Return the store of a lake.

    Args:
        address: absolute directory or URI; see :func:`~nbia_pipeline.address.lake_address`.
        fsync: flush to the disk what is written; an object store does so by itself.

    Raises:
        LakeError: it is a file, no file system is known for the URI, or its store refuses.
    """
    if not is_uri(address):
        if os.path.isfile(address):  # noqa: PTH113 - Path raises where a name is too long
            raise LakeError(f"the lake {address} is a file: set it to a directory", arguments=("lake",))
        # Not by its URL: fsspec would cut a path at `::`.
        return LocalStore(LocalFileSystem(), address, Flush(Path(address), off=not fsync))
    scheme = address.partition("://")[0]
    what = "set it to a directory, or to a URI whose fsspec package is installed"
    if scheme in _EXTRAS:
        what = f"install the package for it, pip install 'nbia-pipeline[{_EXTRAS[scheme]}]'"
    try:
        translated(fsspec.get_filesystem_class, scheme)
        what = ""
        # Others write too: what an object store remembers of its lists would soon be wrong.
        fs, root = translated(fsspec.core.url_to_fs, address, use_listings_cache=False, **options_of(scheme))
    except OSError as e:
        raise LakeError(
            f"the lake {address!r} cannot be opened ({reason(e)}): {what or remedy(e, address)}", arguments=("lake",)
        ) from e
    return ObjectStore(Guarded(fs), root.rstrip("/"))
