"""Files that are odd: they have the same rows as others, and what nothing can read has a row too."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import pytest

from nbia_pipeline.headers.batch import Batch
from nbia_pipeline.headers.parse import source
from nbia_pipeline.headers.parse.source import inflated
from nbia_pipeline_tests.helpers.dicom_bytes import (
    BIG,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    PREAMBLE,
    data_set,
    deflated,
    element,
    meta,
    nested,
)
from nbia_pipeline_tests.helpers.headers import HEAD, KNOWN, PATH, add, differences, file, parsed, quiet, row, rows

NAME = element(0x00100010, "PN", "A^B")
SOP = element(0x00080018, "UI", "1.2.5.1")
LAST = element(0x00280010, "US", b"\x08\0")


def read(data: bytes) -> dict[str, Any]:
    with quiet():
        return row(data)


@pytest.mark.parametrize("order", ["<", ">"])
def test_big_endian_is_as_little_endian(order: str) -> None:
    def number(kind: str, *values: float) -> bytes:
        return struct.pack(f"{order}{len(values)}{kind}", *values)

    item = element(0x00281050, "DS", "1.50", order) + element(0x00283002, "SS", number("h", 1, -2), order)
    after = element(0x00280106, "SS", number("h", -5), order) + nested(0x00283010, item, order=order)
    after += element(0x00541300, "FD", number("d", 0.5, 2), order) + element(0x00660016, "OW", b"\1\2", order)
    data = PREAMBLE + meta(EXPLICIT if order == "<" else BIG) + data_set(order=order, after=after)
    found = read(data)
    assert differences(found, data) == []
    text = parsed(found["Header"])
    assert text["00280106"]["Value"] == [-5]
    assert text["00541300"]["Value"] == [0.5, 2]
    assert text["00283010"]["Value"] == [
        {"00281050": {"vr": "DS", "Value": ["1.50"]}, "00283002": {"vr": "SS", "Value": [1, -2]}}
    ]
    assert (found["Rows"], found["InstanceNumber"], found["Problems"]) == (8, 7, None)
    assert found["TransferSyntaxUID"] == (EXPLICIT if order == "<" else BIG)


@pytest.mark.parametrize("wbits", [-15, 15])
@pytest.mark.parametrize("syntax", [DEFLATED, "1.2.840.10008.1.2.4.95"])
def test_deflated(wbits: int, syntax: str) -> None:
    large = element(0x00660016, "OW", bytes(70_000))
    plain = data_set(after=large + element(0x7FE00010, "OW", bytes(8)))
    data = PREAMBLE + meta(syntax) + deflated(plain, wbits)
    found = read(data)
    text = parsed(found["Header"])
    offset = plain.index(large) + 12
    assert text["00660016"]["BulkDataURI"] == f"{PATH}?inflated&offset={offset}&length=70000"
    assert inflated(data)[offset:][:70_000] == bytes(70_000)
    assert (found["Rows"], found["TransferSyntaxUID"], found["Problems"]) == (8, syntax, None)
    assert (found["PixelDataOffset"], found["PixelDataLength"], found["HeaderBytes"]) == (None, None, len(data))
    assert parsed(found["FileMeta"])["00020010"]["Value"] == [syntax]


def test_a_bomb_is_inflated_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MOST_INFLATED", 1 << 20)
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = stream.compress(data_set(after=struct.pack("<HH2sHL", 0x66, 0x16, b"OW", 0, 1 << 31)))
    bomb = start + stream.compress(bytes(1 << 22)) + stream.flush()
    found = read(PREAMBLE + meta(DEFLATED) + bomb)
    assert found["Rows"] == 8
    assert found["Problems"][0].startswith("00660016: the file ends")


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("stated", [EXPLICIT, IMPLICIT, BIG, DEFLATED, None, "1.2.3"])
def test_another_transfer_syntax_than_the_one_stated(stated: str | None, implicit: bool) -> None:
    found = read(PREAMBLE + meta(stated) + data_set(implicit=implicit))
    assert (found["Rows"], found["Problems"]) == (8, None)
    assert parsed(found["Header"])["00100010"] == {"vr": "PN", "Value": [{"Alphabetic": "A^B"}]}


def test_big_endian_that_states_little_endian() -> None:
    assert read(PREAMBLE + meta(EXPLICIT) + data_set(order=">"))["Rows"] == 8


@pytest.mark.parametrize("before", [b"", bytes(128), b"DICM" + meta(), bytes(128) + meta(), meta()])
@pytest.mark.parametrize("implicit", [False, True])
def test_no_prefix(before: bytes, implicit: bool) -> None:
    data = before + data_set(implicit=implicit)
    found = read(data)
    assert (found["Rows"], found["Problems"]) == (8, None)
    assert found["HeaderBytes"] == len(data)


def test_elements_out_of_order_and_repeated() -> None:
    again = element(0x00100010, "PN", "C^D")
    data = file(SOP, NAME, element(0x00080060, "CS", "CT"), again, LAST)
    found = read(data)
    assert [*parsed(found["Header"])] == ["00080018", "00080060", "00100010", "00280010"]
    assert parsed(found["Header"])["00100010"]["Value"] == [{"Alphabetic": "C^D"}]
    assert found["Problems"] == ["00100010: it occurs again; what it was before is in the file"]
    (omitted,) = found["Omitted"]
    assert (omitted["Tag"], omitted["VR"]) == ("00100010", "PN")
    assert data[omitted["Offset"] :][: omitted["Length"]] == b"A^B "
    assert (found["Modality"], found["ElementCount"]) == ("CT", 5)


@pytest.mark.parametrize("undefined", [True, False])
@pytest.mark.parametrize("deep", [True, False])
def test_elements_repeated_in_an_item(undefined: bool, deep: bool) -> None:
    content = element(0x00100010, "PN", "A^B") + element(0x00100010, "PN", "C^D")
    content = nested(0x00081199, content) if deep else content
    item = struct.pack("<HHL", 0xFFFE, 0xE000, len(content)) + content
    sequence = nested(0x00400275, content) if undefined else element(0x00400275, "SQ", item)
    data = file(SOP, sequence, LAST)
    found = read(data)
    assert "C^D" in found["Header"] and "A^B" not in found["Header"]
    assert found["Problems"] == ["00400275: elements in it occur again; what they were is in the file"]
    (omitted,) = found["Omitted"]
    assert data[omitted["Offset"] :][: omitted["Length"]] == sequence[12:]
    # Out of order is nothing to tell.
    other = element(0x00100020, "LO", "P") + element(0x00100010, "PN", "C^D")
    found = read(file(SOP, nested(0x00400275, other), LAST))
    assert (found["Problems"], found["Omitted"]) == (None, None)
    assert [*parsed(found["Header"])["00400275"]["Value"][0]] == ["00100010", "00100020"]


def test_a_sequence_with_vr_un() -> None:
    inner = element(0x00100020, "", "P ")
    known = element(0x00081140, "UN", struct.pack("<HHL", 0xFFFE, 0xE000, len(inner)) + inner)
    private = nested(0x00091001, inner, vr="UN")
    data = file(SOP, known, element(0x00090010, "LO", "SOMEBODY"), private, NAME)
    found = read(data)
    item = {"00100020": {"vr": "LO", "Value": ["P"]}}
    assert parsed(found["Header"])["00081140"] == {"vr": "SQ", "Value": [item]}
    assert parsed(found["Header"])["00091001"] == {"vr": "SQ", "Value": [item]}
    assert differences(found, data) == []


@pytest.mark.parametrize("cut", [1, 9, 17, 30, 40])
def test_a_file_that_ends_too_early(cut: int) -> None:
    whole = file(SOP, NAME, nested(0x00400275, NAME), element(0x00401001, "SH", "last"))
    data = whole[:-cut]
    found = read(data)
    assert parsed(found["Header"])["00100010"]["Value"] == [{"Alphabetic": "A^B"}]
    assert found["Problems"]
    for one in found["Omitted"] or ():
        assert parsed(found["Header"])[one["Tag"]]["BulkDataURI"]
        assert one["Offset"] + one["Length"] == len(data)


def test_pixel_data_that_end_too_early_or_do_not_end() -> None:
    cut = read(file(SOP, LAST, element(0x7FE00010, "OW", bytes(100)))[:-30])
    assert cut["Problems"] == ["7FE00010: the file ends 30 bytes before the end of the value"]
    assert (cut["PixelDataLength"], cut["Rows"]) == (100, 8)
    fragments = struct.pack("<HH2sHL", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF)
    fragments += struct.pack("<HHL", 0xFFFE, 0xE000, 0) + struct.pack("<HHL", 0xFFFE, 0xE000, 64) + bytes(64)
    data = file(SOP, LAST, fragments, syntax="1.2.840.10008.1.2.4.50")
    found = read(data)
    assert (found["PixelDataLength"], found["Rows"]) == (None, 8)
    assert found["PixelDataOffset"] == len(data) - 80
    assert found["Problems"][0].startswith("7FE00010: the file ends")


@pytest.mark.parametrize("encapsulated", [False, True])
def test_elements_after_the_pixel_data(encapsulated: bool) -> None:
    end = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    one = struct.pack("<HHL", 0xFFFE, 0xE000, HEAD) + bytes(HEAD)
    pixels = struct.pack("<HH2sHL", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF) + one * 3 + end
    if not encapsulated:
        pixels = element(0x7FE00010, "OW", bytes(3 * HEAD))
    signature = nested(0xFFFAFFFA, element(0x04000100, "UI", "1.2.3"))
    padding = element(0xFFFCFFFC, "OB", bytes(70_000))
    data = file(SOP, LAST, pixels, signature, padding)
    found = read(data)
    assert parsed(found["Header"])["FFFAFFFA"]["Value"] == [{"04000100": {"vr": "UI", "Value": ["1.2.3"]}}]
    (omitted,) = found["Omitted"]
    assert (omitted["Tag"], omitted["Offset"], omitted["Length"]) == ("FFFCFFFC", len(data) - 70_000, 70_000)
    assert (found["ElementCount"], found["Problems"]) == (5, None)
    assert found["PixelDataLength"] == (None if encapsulated else 3 * HEAD)
    assert found["HeaderBytes"] == found["PixelDataOffset"] - 12
    # In the same way by pydicom.
    odd = read(file(LAST, SOP, pixels, signature, padding))
    assert odd["Header"] == found["Header"]
    assert (odd["Omitted"], odd["ElementCount"]) == (found["Omitted"], 5)
    assert odd["PixelDataOffset"] == found["PixelDataOffset"]


def test_other_elements_of_the_pixel_group_stay_in_the_file() -> None:
    offsets = element(0x7FE00001, "OV", bytes(16))
    data = file(SOP, offsets, element(0x7FE00010, "OW", bytes(8)))
    found = read(data)
    assert [(one["Tag"], one["VR"], one["Length"]) for one in found["Omitted"]] == [("7FE00001", "OV", 16)]
    assert [*parsed(found["Header"])] == ["00080018"]
    assert (found["PixelDataOffset"], found["PixelDataLength"]) == (len(data) - 8, 8)
    assert found["HeaderBytes"] == data.index(offsets)


@pytest.mark.parametrize("data", [b"", b"no DICOM", bytes(300), bytes(128) + b"DICM", b"<html>" * 1000, b"\xff" * 5000])
def test_what_is_no_dicom_has_a_row(data: bytes) -> None:
    found = read(data)
    assert (found["Header"], found["FileMeta"]) == (None, None)
    assert found["Problems"][0].startswith("it cannot be read: ")
    assert (found["SOPInstanceUID"], found["StudyInstanceUID"], found["PatientID"]) == ("1.2.5.1", "1.2", "P")
    assert (found["SOPClassUID"], found["Modality"]) == ("1.2.840.10008.5.1.4.1.1.2", None)


def test_an_odd_file_among_others_changes_nothing() -> None:
    ordinary = [file(SOP, NAME, element(0x00200013, "IS", str(n)), LAST) for n in range(3)]
    mixed = [ordinary[0], file(NAME, SOP), ordinary[1], b"none", file(SOP, NAME, LAST), ordinary[2]]
    with quiet():
        found = rows(*mixed)
        assert found == [row(data) for data in mixed]
    assert [one["InstanceNumber"] for one in found] == [0, None, 1, None, None, 2]


def test_what_the_reader_of_the_file_raises_is_raised() -> None:
    class Gone(Exception):
        pass

    def more(offset: int, length: int) -> bytes:
        raise Gone

    large = element(0x00081140, "SQ", bytes(HEAD - 100))
    for data in (file(SOP, large), file(NAME, SOP, large), b"DICM" + data_set(after=large)):
        with pytest.raises(Gone):
            Batch().add(KNOWN, data[:1000], len(data), more)


def test_large_values_and_pixel_data_are_not_read() -> None:
    pixels = element(0x7FE00010, "OW", bytes(1_000_000))
    assert add(Batch(), file(SOP, LAST, pixels)) == 0
    large = element(0x00660016, "OW", bytes(1_000_000))
    assert add(Batch(), file(SOP, large, element(0x00660017, "LO", "x"), pixels)) <= HEAD
    end = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    one = struct.pack("<HHL", 0xFFFE, 0xE000, 500_000) + bytes(500_000)
    fragments = struct.pack("<HH2sHL", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF) + one * 4 + end
    assert add(Batch(), file(SOP, LAST, fragments)) == 8
    with quiet():
        assert add(Batch(), file(LAST, SOP, pixels)) == 0
