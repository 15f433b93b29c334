"""The endpoints without a version: counts, descriptions, bulk metadata, licenses, hashes and DICOM tags."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
import pydicom
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from nbia_pipeline.embedded.api.downloads import refused
from nbia_pipeline.embedded.api.endpoint import EMPTY, Call, Handler, Reply, Rows, json_reply
from nbia_pipeline.embedded.api.lists import authorized, filtered, where
from nbia_pipeline.embedded.catalog.holdings import ANY_VISIBILITY
from nbia_pipeline.schema import shapes

_FILTERS = ("Modality", "BodyPartExamined")
_KEYS = {key.name: key for key in shapes.DESCRIPTIONS.keys}
_KEYS_V4 = tuple(_KEYS[name] for name in ("id", "description", "collectionName", "descriptionURI"))
_DESCRIPTIONS_V4 = replace(shapes.DESCRIPTIONS, name="DESCRIPTIONS4", keys=_KEYS_V4)
# What the rows of a collection are divided into, one within the other.
_LEVELS = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")
_PIXEL_DATA = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})


def counts(column: str, v4_name: str, null_as: str | None = None, upper: bool = False) -> Handler:
    """Make one of getXValuesAndCounts: distinct patients per value.

    Server: without a version the value is called criteria and the count is text; v4 writes the value under its
    own name and the count as a number, and leaves the key of a null out, but for body parts.

    Args:
        column: the column whose values are counted.
        v4_name: key of the value in v4.
        null_as: what a null is written as; in v4 an empty one is left out.
        upper: whether the values are written in upper case.
    """

    def handler(call: Call) -> Rows:
        rows = filtered(call, _FILTERS, exact_collection=not call.v4)
        values = pc.utf8_upper(rows[column]) if upper else rows[column]
        if null_as or (null_as is not None and not call.v4):
            values = pc.fill_null(values, null_as)
        # Patients are counted within their collection, as the server keys them.
        pairs = pa.table({"criteria": values, "Collection": rows["Collection"], "PatientID": rows["PatientID"]})
        patients = pairs.group_by(["criteria", "Collection", "PatientID"]).aggregate([])
        counted = patients.group_by("criteria").aggregate([("PatientID", "count")]).sort_by("criteria")
        counted = counted.rename_columns({"criteria": "criteria", "PatientID_count": "count"})
        if call.v4:
            return Rows(authorized(counted), shapes.counts_v4(v4_name))
        return Rows(counted, shapes.COUNTS, jackson=True)

    return handler


def descriptions(call: Call) -> Rows:
    """getCollectionDescriptions: the name is compared exactly; v4 leaves out time, user and license."""
    known = sorted(call.holdings.catalog.descriptions.values(), key=lambda d: d.name)
    wanted = call.query.get("collectionName")
    rows = [
        {
            "Description": d.description,
            "id": number,
            "DescriptionTimestamp": d.edited_ms,
            "Collection": d.name,
            "userName": "curator",
            "DescriptionURI": d.uri,
        }
        for number, d in enumerate(known, 1)
        if wanted is None or d.name == wanted
    ]
    return Rows(pa.Table.from_pylist(rows), _DESCRIPTIONS_V4 if call.v4 else shapes.DESCRIPTIONS, jackson=True)


def metadata2(call: Call) -> Rows:
    """getSeriesMetadata2: CSV of many series. Server: only the first field ``list`` is read."""
    uids = call.form.get("list", [""])[0].split(",")
    return Rows(call.holdings.among(uids, call.rights), shapes.METADATA2, default_format="CSV-DOWNLOAD")


def licenses(call: Call) -> Reply:
    """getLicenses: the licenses that series of the archive name."""
    rows = call.holdings.select(None, visibility=ANY_VISIBILITY).select(["LicenseName", "LicenseURI"])
    pairs = rows.group_by(["LicenseName", "LicenseURI"]).aggregate([]).sort_by("LicenseName").to_pylist()
    answer = [
        {
            "longName": pair["LicenseName"],
            "id": number,
            "shortName": _short_name(pair["LicenseName"], pair["LicenseURI"]),
            "licenseURL": pair["LicenseURI"],
            "licenseText": None,
            "commercialUse": "NO" if "noncommercial" in pair["LicenseName"].casefold() else "YES",
        }
        for number, pair in enumerate((p for p in pairs if p["LicenseName"] is not None), 1)
    ]
    return json_reply(answer)


def md5_hierarchy(call: Call) -> Reply:
    """getMD5Hierarchy: MD5 of the sorted hashes of the level below, without separators.

    Server: the level of the series has neither visibility nor rights filter; a collection is what the guest
    sees; nothing found is an empty body.
    """
    given = {name: texts[0] for name, texts in call.form.items() if texts}
    if "SeriesInstanceUID" in given:
        rows = call.holdings.among([given["SeriesInstanceUID"]], None, ANY_VISIBILITY)
        digest = _hash(call, rows, ())
    elif "StudyInstanceUID" in given:
        rows = call.holdings.select(call.rights)
        digest = _hash(call, where(rows, "StudyInstanceUID", given["StudyInstanceUID"]), _LEVELS[2:])
    elif "Collection" not in given:
        return EMPTY
    elif "PatientID" in given:
        rows = call.holdings.select(call.rights, given["Collection"])
        digest = _hash(call, where(rows, "PatientID", given["PatientID"]), _LEVELS[1:])
    else:
        digest = _hash(call, call.holdings.select(frozenset(), given["Collection"]), _LEVELS)
    return Reply(digest.encode(), content_type="text/plain")


def dicom_tags(call: Call) -> Reply:
    """getDicomTags: the header of one image of the series, file meta first, without pixel data."""
    uid, images = call.query.get("SeriesUID", ""), call.holdings.catalog.images
    if not call.holdings.among([uid], call.rights).num_rows:
        return refused(call, uid)
    if images is None:
        return EMPTY
    try:
        data = images.read(uid, images.instances(uid)[0].sop_instance_uid)
    except (LookupError, OSError):
        return EMPTY
    dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
    return json_reply([*_tags(dataset.file_meta), *_tags(dataset)])


def _short_name(long_name: str, uri: str | None) -> str:
    """Return ``CC BY 4.0`` from ``.../licenses/by/4.0/``; the long name for other licenses."""
    parts = (uri or "").rstrip("/").split("/")
    if "licenses" in parts[:-2]:
        return f"CC {parts[-2].upper()} {parts[-1]}"
    return long_name


def _hash(call: Call, rows: pa.Table, levels: Sequence[str]) -> str:
    """Return the MD5 of the sorted hashes of what `levels` distinguish, of images without any; "" for nothing."""
    catalog = call.holdings.catalog
    if levels:
        values = pc.unique(rows[levels[0]].drop_null()).to_pylist()
        hashes = [_hash(call, where(rows, levels[0], value), levels[1:]) for value in values]
    elif catalog.images is not None:
        uids = rows["SeriesInstanceUID"].to_pylist()
        # Server: over the strings as they are stored, short and blank ones too.
        hashes = [catalog.md5(uid, i.sop_instance_uid) or "" for uid in uids for i in catalog.images.instances(uid)]
    else:
        hashes = []
    known = sorted(h for h in hashes if h)
    return hashlib.md5("".join(known).encode(), usedforsecurity=False).hexdigest() if known else ""


def _tags(dataset: Dataset, depth: str = "") -> Iterator[dict[str, str | None]]:
    for element in dataset:
        if element.tag in _PIXEL_DATA:
            continue
        tag = f"{depth}({element.tag.group:04X},{element.tag.element:04X})"
        yield {"element": tag, "name": element.name, "data": _data(element)}
        if element.VR == "SQ":
            for item in element.value:
                yield from _tags(item, depth + ">")
            yield {"element": tag, "name": f"End {element.name}", "data": None}


def _data(element: DataElement) -> str | None:
    if element.VR == "SQ" or element.value is None or isinstance(element.value, bytes):
        return None
    if element.VM > 1:
        return "\\".join(str(value) for value in element.value)
    return str(element.value)
