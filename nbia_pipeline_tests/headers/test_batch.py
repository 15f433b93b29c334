"""Batches of files: typed columns, files of a series one after the other, and data sets of pydicom from the lake."""

from __future__ import annotations

import datetime
import struct
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbia_pipeline import headers
from nbia_pipeline.headers.batch import Batch
from nbia_pipeline.headers.parse.typed import HOT, NAMES
from nbia_pipeline.headers.parse.walker import Walker
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.schema.headers import ANNOTATIONS, INSTANCE_HEADERS, INSTANCE_REFERENCES
from nbia_pipeline_tests.helpers.dicom_bytes import BIG, DEFLATED, PREAMBLE, data_set, deflated, element, meta, nested
from nbia_pipeline_tests.helpers.headers import KNOWN, PATH, add, file, highdicom_files, quiet, row, rows

SOP = element(0x00080018, "UI", "1.2.5.1")
NOT_OF_THE_FILE = {"SOPInstanceUID", "SeriesInstanceUID", "Collection", "SeriesMD5", "Path"}


def us(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}H", *numbers)


def test_every_column_of_an_element_has_its_value() -> None:
    dose = element(0x00181074, "DS", "3.5E8") + nested(0x00180026, element(0x00181074, "DS", "1"))
    others = element(0x00181074, "DS", "9")
    item = struct.pack("<HHL", 0xFFFE, 0xE000, len(dose)) + dose
    drugs = item + struct.pack("<HHL", 0xFFFE, 0xE000, len(others)) + others
    values: dict[int, tuple[str, str | bytes, Any]] = {
        0x00080008: ("CS", "ORIGINAL\\PRIMARY\\", ["ORIGINAL", "PRIMARY", None]),
        0x00080016: ("UI", "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2"),
        0x00080022: ("DA", "20000131", datetime.date(2000, 1, 31)),
        0x00080032: ("TM", "112233.5", "112233.5"),
        0x00080060: ("CS", "PT", "PT"),
        0x00100020: ("LO", "P 1 ", "P 1"),
        0x00101020: ("DS", "1.80", 1.8),
        0x00130010: ("LO", "SOMEBODY", None),
        0x00130011: ("LO", "CTP", None),
        0x00131010: ("LO", "not this one", None),
        0x00131110: ("LO", "LIDC-IDRI", None),
        0x00180050: ("DS", "2.500000", 2.5),
        0x00181152: ("IS", "007", 7.0),
        0x00181210: ("SH", "B30f\\B40f", ["B30f", "B40f"]),
        0x00189087: ("FD", struct.pack("<d", 1000.5), 1000.5),
        0x0020000D: ("UI", "1.2.9", "1.2.9"),
        0x00200013: ("IS", "+12", 12),
        0x00200032: ("DS", "1\\\\-3.50", [1.0, None, -3.5]),
        0x00280008: ("IS", "99999999999999999999", None),
        0x00280010: ("US", us(512), 512),
        0x00280030: ("DS", "0.5", [0.5]),
        0x00281050: ("DS", "40\\400", [40.0, 400.0]),
        0x00281053: ("DS", "", None),
        0x00281054: ("LO", "HU", "HU"),
        0x00540016: ("SQ", drugs, None),
    }
    found = row(file(SOP, *(element(tag, vr, value) for tag, (vr, value, _) in values.items())))
    for tag, (_, _, expected) in values.items():
        if tag in HOT:
            assert found[NAMES[HOT[tag][0]]] == expected, f"{tag:08X}"
    assert found["RadionuclideTotalDose"] == 3.5e8
    assert found["CTPCollection"] == "LIDC-IDRI"
    assert found["PrivateCreators"] == ["SOMEBODY", "CTP"]
    assert found["TransferSyntaxUID"] == "1.2.840.10008.1.2.1"
    assert {name: found[name] for name in NOT_OF_THE_FILE} == {n: getattr(KNOWN, n) for n in NOT_OF_THE_FILE}
    assert found["ElementCount"] == len(values) + 1


@pytest.mark.parametrize(
    ("tag", "vr", "value"),
    [
        (0x00080022, "DA", "2000"),
        (0x00080022, "DA", "20001340"),
        (0x00080022, "DA", "20000101-20000102"),
        (0x00180050, "DS", "2,5"),
        (0x00180050, "LO", "thick"),
        (0x00189087, "FD", b"abc"),
        (0x00200013, "IS", "9223372036854775808"),
        (0x00280010, "UT", "many"),
    ],
)
def test_what_does_not_fit_in_a_column_is_null_there(tag: int, vr: str, value: str | bytes) -> None:
    assert row(file(SOP, element(tag, vr, value)))[NAMES[HOT[tag][0]]] is None


def test_a_day_with_dots() -> None:
    assert row(file(SOP, element(0x00080022, "DA", "1997.04.24")))["AcquisitionDate"] == datetime.date(1997, 4, 24)


CHANGES: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {
        "charset": st.sampled_from(["ISO_IR 100", "ISO_IR 192"]),
        "number": st.sampled_from(["1", "2", "03", "x"]),
        "name": st.sampled_from([b"M\xc3\xbcller", b"A^B", b""]),
        "creator": st.sampled_from(["GEMS_ACQU_01", "CTP", "NOBODY"]),
        "signed": st.sampled_from([0, 1]),
        "reference": st.sampled_from(["1.2.3", "1.2.3.4", ""]),
        "comment": st.sampled_from([None, "a", "bb"]),
        "pixels": st.sampled_from([0, 8, 70_000]),
    }
)


def slice_of(charset: str, number: str, name: bytes, creator: str, signed: int, **more: Any) -> bytes:
    """Return a file, as slices of a series are; some differ in what the meaning of other elements depends on."""

    def one(tag: int, vr: str, value: str | bytes) -> bytes:
        return element(tag, "" if more["implicit"] else vr, value)

    reference = one(0x00081155, "UI", more["reference"])
    item = struct.pack("<HHL", 0xFFFE, 0xE000, len(reference)) + reference
    parts = [one(0x00080005, "CS", charset), one(0x00080018, "UI", f"1.2.5.{number}"), one(0x00081140, "SQ", item)]
    parts += [one(0x00100010, "PN", name), one(0x00130010, "LO", creator), one(0x00131010, "UN", b"C\0")]
    parts += [one(0x00190010, "LO", creator), one(0x00191002, "UN", bytes(4)), one(0x00200013, "IS", number)]
    if more["comment"] is not None:
        parts.append(one(0x00204000, "LT", more["comment"]))
    parts += [one(0x00280103, "US", us(signed)), one(0x00280106, "SS" if signed else "US", b"\xff\xff")]
    if more["pixels"]:
        parts.append(one(0x7FE00010, "OW", bytes(more["pixels"])))
    return file(*parts, syntax="1.2.840.10008.1.2" if more["implicit"] else "1.2.840.10008.1.2.1")


def alone(data: bytes) -> dict[str, Any]:
    """Return the row of a file, read by what has read no other."""
    batch = Batch()
    batch._walker = Walker()
    add(batch, data)
    (found,) = batch.tables()[INSTANCE_HEADERS.name].to_pylist()
    return dict(found)


def test_files_one_after_the_other_have_the_rows_that_they_have_alone(request: pytest.FixtureRequest) -> None:
    many = request.config.getoption("--every-moment")

    @settings(max_examples=500 if many else 12, deadline=None, database=None, derandomize=not many)
    @given(st.lists(CHANGES, min_size=2, max_size=8), st.booleans())
    def check(changes: list[dict[str, Any]], implicit: bool) -> None:
        files = [slice_of(**change, implicit=implicit) for change in changes]
        apart = [alone(data) for data in files]
        assert rows(*files) == apart

    with quiet():
        check()


def test_a_series_is_compared_in_stretches() -> None:
    batch = Batch()
    batch._walker = Walker()
    files = [
        slice_of("ISO_IR 100", str(n), b"A^B", "CTP", 0, reference="1.2.3", comment=None, pixels=8, implicit=False)
        for n in range(50)
    ]
    for data in files:
        add(batch, data)
    runs = batch._walker._data[True]._runs
    assert sum(run.raw is None for run in runs) == 2  # SOPInstanceUID and InstanceNumber
    assert len(runs) == 5


def test_references_and_annotations_are_rows_of_their_tables() -> None:
    batch = Batch()
    objects = highdicom_files()
    for number, data in enumerate(objects.values()):
        add(batch, data, KNOWN._replace(SOPInstanceUID=f"1.2.{number}"))
    tables = batch.tables()
    for table in (INSTANCE_HEADERS, INSTANCE_REFERENCES, ANNOTATIONS):
        assert tables[table.name].schema == table.schema
    references = tables["instance_references"].to_pylist()
    assert {one["SOPInstanceUID"] for one in references} == {f"1.2.{n}" for n in range(len(objects))}
    assert {one["SeriesMD5"] for one in references} == {"md5"}
    labels = [(one["Kind"], one["Number"], one["Label"]) for one in tables["annotations"].to_pylist()]
    assert labels == [("segment", 1, "Left"), ("segment", 2, "Right")]
    assert len(batch) == tables["instance_headers"].num_rows == len(objects)


def test_references_of_odd_files_are_those_of_ordinary_ones() -> None:
    ordinary, odd = Batch(), Batch()
    for data in highdicom_files().values():
        add(ordinary, data)
        with quiet():
            add(odd, data[132:])  # without preamble and prefix: for pydicom
    for name in ("instance_references", "annotations"):
        assert odd.tables()[name].num_rows > 0
        assert odd.tables()[name] == ordinary.tables()[name]


# --- back to pydicom


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


def put(lake: Lake, data: bytes, known: Any = KNOWN) -> None:
    """Write a file and its row."""
    lake.put_bytes(known.Path, data)
    batch = Batch()
    with quiet():
        add(batch, data, known)
    lake.write_table(INSTANCE_HEADERS, batch.tables()[INSTANCE_HEADERS.name], known.Collection)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", BIG, DEFLATED])
def test_a_data_set_has_the_values_that_are_in_the_file_only(lake: Lake, syntax: str) -> None:
    order = ">" if syntax == BIG else "<"
    items = element(0x30060046, "IS", "3", order) + element(0x30060048, "IS", "7", order)
    lut = element(0x00281201, "OW", bytes(range(256)) * 300, order)
    text = element(0x00409096, "UT", "ü".encode() * 40_000, order)
    content = data_set(
        first=element(0x00080005, "CS", "ISO_IR 192", order),
        after=lut + text + nested(0x30060039, items, items=2100, order=order),
        order=order,
    )
    put(lake, PREAMBLE + meta(syntax) + (deflated(content) if syntax == DEFLATED else content))
    found = headers.dataset(lake, "1.2.5.1")
    assert (found.PatientName, found.Rows, found.file_meta.TransferSyntaxUID) == ("A^B", 8, syntax)
    assert found.RedPaletteColorLookupTableData == bytes(range(256)) * 300
    assert found[0x00409096].value == "ü" * 40_000
    assert [int(item.ContourNumber) for item in found.ROIContourSequence] == [7] * 2100


def test_a_data_set_of_what_is_no_value_of_its_vr(lake: Lake) -> None:
    put(lake, file(SOP, element(0x00180050, "DS", "2,5"), nested(0x00400275, element(0x00180050, "DS", "2,5"))))
    found = headers.dataset(lake, "1.2.5.1")
    assert (found[0x00180050].VR, found[0x00180050].value) == ("UN", b"2,5 ")
    assert found.RequestAttributesSequence[0][0x00180050].value == b"2,5 "
    assert pydicom.config.replace_un_with_known_vr


def test_an_instance_that_is_not_there(lake: Lake) -> None:
    with pytest.raises(LakeError, match=r"instance 1\.2\.3 is not in table instance_headers"):
        headers.dataset(lake, "1.2.3")
    put(lake, b"no DICOM", KNOWN._replace(Collection="D"))
    put(lake, file(SOP))
    assert headers.dataset(lake, "1.2.5.1").SOPInstanceUID == "1.2.5.1"
    with pytest.raises(LakeError, match=r"could not be read \(it cannot be read: .*\): see " + PATH):
        put(lake, b"no DICOM")
        headers.dataset(lake, "1.2.5.1")
