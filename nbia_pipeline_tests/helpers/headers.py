"""Headers as rows; and what pydicom makes of them, by the rules of the documentation."""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import data_element_generator

from nbia_pipeline.embedded.demo.catalog import demo_plans
from nbia_pipeline.embedded.phantoms.store import PhantomStore
from nbia_pipeline.headers.batch import Batch, Known
from nbia_pipeline.headers.parse.template import LARGE
from nbia_pipeline.schema.headers import INSTANCE_HEADERS
from nbia_pipeline_tests.helpers.dicom_bytes import EXPLICIT, PREAMBLE, meta
from nbia_pipeline_tests.helpers.dicom_objects import MAKERS

HEAD = 1 << 16
PATH = "images/C/P/1.2/1.2.5/1.2.5.1.dcm"
KNOWN = Known("1.2.5.1", "1.2.5", "1.2", "P", "C", "1.2.840.10008.5.1.4.1.1.2", "md5", PATH, None)
PYDICOM = Path(pydicom.__file__).parent / "data"

Row = dict[str, Any]


def add(batch: Batch, data: bytes, known: Known = KNOWN) -> int:
    """Add a file to a batch; return how many bytes were read besides its head."""
    read = 0

    def more(offset: int, length: int) -> bytes:
        nonlocal read
        assert 0 <= offset < len(data) and 0 < length <= len(data) - offset
        read += length
        return data[offset : offset + length]

    batch.add(known, data[:HEAD], len(data), more)
    return read


def rows(*files: bytes) -> list[Row]:
    """Return the rows of some files, which are read one after the other."""
    batch = Batch()
    for data in files:
        add(batch, data)
    table = batch.tables()[INSTANCE_HEADERS.name]
    assert table.schema == INSTANCE_HEADERS.schema
    table.validate(full=True)
    found: list[Row] = table.to_pylist()
    return found


def row(data: bytes) -> Row:
    """Return the row of a file."""
    return rows(data)[0]


def header(data: bytes) -> dict[str, Any]:
    """Return the Header of a file, taken apart; a constant that is no JSON fails."""
    return parsed(row(data)["Header"])


def parsed(text: str) -> dict[str, Any]:
    """Return JSON, whose keys are in order."""

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        tags = [key for key, _ in found if len(key) == 8]
        assert tags == sorted(set(tags))
        return dict(found)

    def constant(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    found: dict[str, Any] = json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    return found


# --- files


def file(*elements: bytes, syntax: str = EXPLICIT) -> bytes:
    """Return a file of some elements."""
    return PREAMBLE + meta(syntax) + b"".join(elements)


@functools.lru_cache(maxsize=1)
def pydicom_files() -> dict[str, bytes]:
    """Return the DICOM files that pydicom is tested with, by their names; those that are in its package."""
    found = [p for p in sorted((PYDICOM / "test_files").rglob("*")) if p.is_file() and is_dicom(p)]
    found += sorted((PYDICOM / "charset_files").glob("*.dcm"))
    return {str(path.relative_to(PYDICOM)): path.read_bytes() for path in found}


def is_dicom(path: Path) -> bool:
    """Return whether a file of pydicom is DICOM."""
    return path.suffix == ".dcm" or path.name.startswith("DICOMDIR")


@functools.lru_cache(maxsize=2)
def demo_files(*, every: bool = False) -> dict[str, bytes]:
    """Return files of the demo: two images of each modality and of each object that refers to others, or every file."""
    store = PhantomStore(plans := demo_plans())
    some = [*{plan.modality: plan for plan in plans if not plan.source}.values(), *(p for p in plans if p.source)]
    return {
        f"{plan.modality} {one.sop_instance_uid}": store.read(plan.uid, one.sop_instance_uid)
        for plan in (plans if every else some)
        for one in store.instances(plan.uid)[: None if every else 2]
    }


@functools.lru_cache(maxsize=1)
def highdicom_files() -> dict[str, bytes]:
    """Return objects of highdicom."""
    return {make.__name__: make() for make in MAKERS}


# --- pydicom


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let pydicom warn nobody."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def by_pydicom(data: bytes) -> pydicom.FileDataset:
    """Return what pydicom reads."""
    return pydicom.dcmread(io.BytesIO(data), force=True)


def expected(data: Dataset, outermost: bool = True) -> dict[str, Any]:
    """Return pydicom's JSON of a data set by the rules that the documentation lists, and no others."""
    found = {}
    for tag in sorted(data.keys()):
        if tag & 0xFFFF and not (outermost and tag >> 16 == 0x7FE0):
            found[f"{int(tag):08X}"] = _expected(data, tag)
    return found


def _expected(data: Dataset, tag: Any) -> dict[str, Any]:
    raw = data.get_item(tag)
    try:
        element = data[tag]
        if element.VR == "SQ":
            return {"vr": "SQ", "Value": [expected(item, False) for item in element.value]}
        found: dict[str, Any] = element.to_json_dict(None, 1024)
        json.dumps(found)
    except Exception:  # noqa: BLE001 - pydicom raises anything, for the data set as a whole
        return {"vr": "UN", "InlineBinary": base64.b64encode(raw.value).decode()}
    if "Value" in found:
        found["Value"] = [_value(found["vr"], value, one) for value, one in _pairs(element, found["Value"])]
    return found


def _pairs(element: DataElement, values: list[Any]) -> list[tuple[Any, Any]]:
    originals = element.value if len(values) > 1 else [element.value]
    return list(zip(values, originals, strict=True))


def _value(vr: str, value: Any, original: Any) -> Any:
    """Return a value of pydicom's JSON by our rules."""
    if value in ("", None, {"Alphabetic": ""}):
        return None
    if vr in ("DS", "IS"):
        text = str(original).strip(" \0")
        with contextlib.suppress(ValueError):
            if json.dumps(json.loads(text)) == text:
                return json.loads(text)
        return text
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def differences(found: Row, data: bytes) -> list[str]:
    """Return where a row is not what pydicom says; large values must be where BulkDataURI says."""
    theirs, ours = by_pydicom(data), parsed(found["Header"])
    wanted, omitted = expected(theirs), {one["Tag"]: one for one in found["Omitted"] or ()}
    wrong = []
    for tag in sorted({*wanted, *ours}):
        if "BulkDataURI" in ours.get(tag, {}):
            place = omitted[tag]
            uri = f"{PATH}?offset={place['Offset']}&length={place['Length']}"
            if ours[tag] != {"vr": place["VR"], "BulkDataURI": uri} or place["Length"] <= LARGE:
                wrong.append(f"{tag}: {ours[tag]}")
        elif ours.get(tag) != wanted.get(tag):
            wrong.append(f"{tag}: {str(ours.get(tag))[:200]} instead of {str(wanted.get(tag))[:200]}")
    meta = expected(theirs.file_meta)
    if parsed(found["FileMeta"]) != meta:
        wrong.append(f"FileMeta: {found['FileMeta']} instead of {meta}")
    return wrong


# --- the account


def unaccounted(found: Row, data: bytes) -> int:
    """Return how many bytes of a file are in none of Header, FileMeta, Omitted, pixel data and the heads of elements.

    Every value in JSON is made to bytes again, and must be that of the file but for padding.
    """
    theirs = by_pydicom(data)
    begin = 132 if theirs.preamble else 0
    of_meta = data_element_generator(io.BytesIO(data[begin:]), False, True, lambda tag, vr, length: tag >> 16 != 2)
    meta = Dataset({element.tag: element for element in of_meta})
    meta.set_original_encoding(False, True, "iso8859")
    omitted = {one["Tag"]: one for one in found["Omitted"] or ()}
    in_meta = _accounted(meta, parsed(found["FileMeta"]), omitted, found)
    return len(data) - begin - in_meta - _accounted(theirs, parsed(found["Header"]), omitted, found)


def _accounted(data: Dataset, json_of: dict[str, Any], omitted: dict[str, Any], found: Row) -> int:
    total = 0
    for tag in sorted(data.keys()):
        raw: Any = data.get_item(tag, keep_deferred=True)
        name = f"{int(tag):08X}"
        size = _size(raw, data)
        total += size
        if name in omitted:
            assert omitted[name]["Length"] == size - _head(raw, data), name
            assert isinstance(raw, DataElement) or omitted[name]["Offset"] == raw.value_tell
        elif tag >> 16 == 0x7FE0:
            assert found["PixelDataOffset"] == raw.value_tell
            assert found["PixelDataLength"] in (raw.length, None)
        elif tag & 0xFFFF and isinstance(raw, RawDataElement):
            _same_bytes(json_of[name], raw)
    return total


def _head(raw: Any, data: Dataset) -> int:
    implicit = raw.is_implicit_VR if isinstance(raw, RawDataElement) else data.original_encoding[0]
    return 12 if not implicit and raw.VR in "OB OD OF OL OV OW SQ SV UC UN UR UT UV".split() else 8


def _size(raw: Any, data: Dataset) -> int:
    """Return the bytes of an element in the file."""
    if isinstance(raw, RawDataElement):
        end = 8 if raw.length == 0xFFFFFFFF else 0  # of the last fragment comes a delimiter
        return _head(raw, data) + len(raw.value or b"") + end
    if raw.VR != "SQ":  # an element that pydicom has looked at
        text = raw.value if isinstance(raw.value, str) else "\\".join(raw.value or ())
        return _head(raw, data) + len(text) + len(text) % 2
    items = sum(8 + _items_size(item) for item in raw.value)
    return int(_head(raw, data) + items + 8 * raw.value.is_undefined_length)


def _items_size(item: Dataset) -> int:
    elements: int = sum(_size(item.get_item(tag, keep_deferred=True), item) for tag in sorted(item.keys()))
    return int(elements + 8 * bool(item.is_undefined_length_sequence_item))


def _same_bytes(found: dict[str, Any], raw: RawDataElement) -> None:
    if "InlineBinary" in found:
        assert base64.b64decode(found["InlineBinary"]) == raw.value
    elif found["vr"] in ("DS", "IS") and raw.value:
        texts = ["" if value is None else str(value) for value in found.get("Value", [""])]
        assert texts == [one.strip(" \0") for one in raw.value.decode("latin1").split("\\")]
