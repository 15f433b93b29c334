"""The endpoints that send files: zips written as a stream, single files, digests."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from types import MappingProxyType

from nbia_pipeline.embedded.api.endpoint import EMPTY, Call, Reply, ServerFault, bad_request
from nbia_pipeline.embedded.api.zip_writer import Packed, ZipStream, pack
from nbia_pipeline.embedded.catalog.holdings import ANY_VISIBILITY
from nbia_pipeline.embedded.catalog.model import Catalog, ImageStore, StoredInstance

_LOG = logging.getLogger(__name__)

PIECE_BYTES = 256 * 1024
"""Bytes collected before a piece of a zip is sent."""

NamedInstance = tuple[str, StoredInstance]
"""Name of an entry and the instance that it contains."""


def not_public(uid: str) -> Reply:
    """Return the answer of v1, and of getDCMImage in every version, for a series that the caller does not get."""
    return bad_request(f"Image with given SeriesInstanceUID,{uid}, is not in public domain.")


def refused(call: Call, uid: str) -> Reply:
    """Return the one answer for a series that is unknown, hidden or forbidden; v1 words it differently."""
    return not_public(uid) if call.version == "v1" else bad_request(access_refused(uid))


def access_refused(uid: str) -> str:
    """Return the sentence of v2 and v4 about such a series."""
    return (
        f"The user has not been granted the access to image with given SeriesInstanceUID,{uid}. "
        "Please contact System Admin to resolve this issue."
    )


def image(call: Call) -> Reply:
    """getImage: the license, then the images; in v4 ``md5hashes.csv`` if asked for.

    Server: v4 stops at an image without a digest even when no digests are asked for.
    """
    catalog, uid = call.holdings.catalog, call.query["SeriesInstanceUID"]
    found = call.holdings.among([uid], call.rights)
    if not found.num_rows:
        return refused(call, uid)
    row = found.slice(0, 1).to_pylist()[0]
    text = (
        f"The collection {row['Collection']} is distributed under {row['LicenseName']} ({row['LicenseURI']}).\n"
        "Cite the collection, whose address is given in the archive's listing, when you use these data.\n"
    )
    named = _numbered(call, uid)
    if call.query.get("NewFileNames", "").casefold() == "yes":
        named = by_acquisition(_instances(call, uid))
    hashes = call.v4 and call.query.get("IncludeMD5", "").casefold() == "yes"
    if call.v4:
        digests = [catalog.md5(uid, i.sop_instance_uid) for _, i in named]
        if None in digests:
            named, hashes = named[: digests.index(None)], False
    return _zip_reply(call, uid, named, hashes=hashes, license=text)


def image_with_md5(call: Call) -> Reply:
    """getImageWithMD5Hash: images, then ``md5hashes.csv``; no license.

    Server: an image without a digest ends the answer before the first file.
    """
    catalog, uid = call.holdings.catalog, call.query["SeriesInstanceUID"]
    if not call.holdings.among([uid], call.rights).num_rows:
        return refused(call, uid)
    named = _numbered(call, uid)
    if catalog.images is None or any(catalog.md5(uid, i.sop_instance_uid) is None for _, i in named):
        return _zip_reply(call, uid, [], hashes=False)
    return _zip_reply(call, uid, named, hashes=True)


def dcm_image(call: Call) -> Reply:
    """getDCMImage: images named by acquisition, ``md5hashes.csv`` and annotation files if asked for; no license.

    Server: the annotation files come last, under their base names, and the list of digests has images only.
    """
    uid, parameters = call.query["SeriesInstanceUID"], ("MD5Verification", "IncludeAnnotation")
    if not call.holdings.among([uid], call.rights).num_rows:
        return not_public(uid)
    hashes, annotations = (call.query.get(name, "").casefold() == "true" for name in parameters)
    files = call.holdings.catalog.annotations.get(uid, {}) if annotations else {}
    return _zip_reply(call, uid, by_acquisition(_instances(call, uid)), hashes=hashes, annotations=files)


def single_image(call: Call) -> Reply:
    """getSingleImage: one file. Server: rights are checked, visibility is not; 500 for what is not there."""
    images, uid, sop = call.holdings.catalog.images, call.query["SeriesInstanceUID"], call.query["SOPInstanceUID"]
    if images is None or not call.holdings.among([uid], call.rights, ANY_VISIBILITY).num_rows:
        raise ServerFault
    try:
        data = images.read(uid, sop)
    except (KeyError, OSError) as error:
        raise ServerFault from error
    return Reply(data, content_type="application/dicom", disposition=f"attachment; filename={sop}.dcm")


def md5_of_image(call: Call) -> Reply:
    """getM5HashForImage (sic) of v2, whose parameter is ``SOPInstanceUid``, and getMD5HashForImage of v4.

    Server: 200 and nothing where there is none to show.
    """
    sop = call.query.get("SOPInstanceUID" if call.v4 else "SOPInstanceUid")
    series = call.holdings.series_of_instance(sop or "")
    if sop is None or series is None or not call.holdings.among([series], call.rights).num_rows:
        return EMPTY
    digest = call.holdings.catalog.md5(series, sop)
    return EMPTY if digest is None else Reply(digest.encode(), content_type="text/plain")


def _instances(call: Call, uid: str) -> Sequence[StoredInstance]:
    images = call.holdings.catalog.images
    return () if images is None else images.instances(uid)


def _numbered(call: Call, uid: str) -> list[NamedInstance]:
    """Name the images by a counter over an order that differs between downloads.

    Server: the query has no order, so that the same image may get another number tomorrow. Here the order
    follows from the series and from how many downloads of it came before.
    """
    call.settings.downloads[uid] += 1
    shuffled = list(_instances(call, uid))
    random.Random(f"{uid}#{call.settings.downloads[uid]}").shuffle(shuffled)  # noqa: S311 - not a secret
    return [(f"{number:08d}.dcm", instance) for number, instance in enumerate(shuffled, 1)]


def by_acquisition(instances: Sequence[StoredInstance]) -> list[NamedInstance]:
    """Name the images ``A-B.dcm``.

    Server: sorted by InstanceNumber; A rises each time the AcquisitionNumber differs from the previous
    one, B restarts with each A. A is padded to the digits of the number of changes of the acquisition
    number plus one, B to those of the instance number: 9 images give ``1-1.dcm``, 10 give ``1-01.dcm``.
    """
    ordered = sorted(instances, key=lambda i: i.instance_number)
    changes = sum(x.instance_number != y.instance_number for x, y in pairwise(ordered))
    groups = [list(group) for _, group in groupby(ordered, key=lambda i: i.acquisition_number)]
    width_a, width_b = len(str(len(groups))), len(str(changes + 1))
    return [
        (f"{a:0{width_a}d}-{b:0{width_b}d}.dcm", instance)
        for a, group in enumerate(groups, 1)
        for b, instance in enumerate(group, 1)
    ]


def _zip_reply(
    call: Call,
    uid: str,
    named: Sequence[NamedInstance],
    *,
    hashes: bool,
    license: str | None = None,
    annotations: Mapping[str, bytes] = MappingProxyType({}),
) -> Reply:
    pieces = _in_pieces(_parts(call, uid, named, hashes, license, annotations))
    return Reply(pieces, content_type="application/octet-stream", disposition=f'attachment; filename="{uid}.zip"')


def _in_pieces(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Join parts to pieces of a size that is worth sending."""
    buffer: list[bytes] = []
    for part in parts:
        buffer.append(part)
        if sum(map(len, buffer)) >= PIECE_BYTES:
            yield b"".join(buffer)
            buffer.clear()
    yield b"".join(buffer)


def _parts(
    call: Call,
    uid: str,
    named: Sequence[NamedInstance],
    hashes: bool,
    license: str | None,
    annotations: Mapping[str, bytes],
) -> Iterator[bytes]:
    """Yield a zip entry by entry.

    Server: every error inside the loop is caught and the zip is closed, so that what arrives is a valid
    archive that ends early; ``md5hashes.csv`` is written only after the last image.
    """
    archive, images = ZipStream(), call.holdings.catalog.images
    if license is not None:
        yield from archive.entry("LICENSE", pack(license.encode()))
    if images is not None:
        try:
            for name, instance in named:
                yield from archive.entry(name, _packed(call, images, uid, instance.sop_instance_uid))
        except (KeyError, OSError) as error:
            _LOG.warning("series %s: the download ends early: %r", uid, error)
            hashes, annotations = False, {}
        if hashes:
            yield from archive.entry("md5hashes.csv", pack(_digests(call.holdings.catalog, uid, named)))
    for name, content in annotations.items():
        yield from archive.entry(name, pack(content))
    yield archive.close()


def _packed(call: Call, images: ImageStore, uid: str, sop: str) -> Packed:
    """Return a deflated file: from the scratch directory if it was sent before, else made and kept there.

    A store that has its files deflated already may have a method ``packed``; nothing is kept of those.
    """
    ready: Callable[[str, str], Packed | None] = getattr(images, "packed", lambda uid, sop: None)
    found = ready(uid, sop)
    if found is not None:
        return found
    key = f"{call.holdings.content_stamp(uid)} {uid} {sop}"
    stored = call.settings.scratch.load(key)
    if stored is not None:
        return Packed.from_bytes(stored)
    packed = pack(images.read(uid, sop))
    call.settings.scratch.store(key, packed.to_bytes())
    return packed


def _digests(catalog: Catalog, uid: str, named: Sequence[NamedInstance]) -> bytes:
    rows = [f"{name},{catalog.md5(uid, i.sop_instance_uid) or ''}" for name, i in named]
    random.Random(uid).shuffle(rows)  # noqa: S311 - server: the rows come in arbitrary order
    return ("\n".join(["Filename,MD5Hash", *rows]) + "\n").encode()
