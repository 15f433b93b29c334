"""The rules of Header beyond PS3.18, annex F; and where pydicom's JSON loses something."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbia_pipeline.headers.parse.charset import encodings_of
from nbia_pipeline.headers.parse.json import DEEPEST, fragment
from nbia_pipeline_tests.helpers.dicom_bytes import IMPLICIT, element, nested
from nbia_pipeline_tests.helpers.headers import PATH, by_pydicom, file, header, parsed, quiet, row

SOP = element(0x00080018, "UI", "1.2.5.1")
THICKNESS, NUMBER = 0x00180050, 0x00200013


def one(vr: str, value: bytes | str, tag: int = 0x00091001, *before: bytes) -> dict[str, Any]:
    """Return the JSON of an element in a file."""
    creator = [element(0x00090010, "LO", "SOMEBODY")] if tag == 0x00091001 else []
    return dict(header(file(*before, SOP, *creator, element(tag, vr, value)))[f"{tag:08X}"])


def values(vr: str, value: bytes | str) -> Any:
    found = one(vr, value)
    assert found["vr"] == vr
    return found.get("Value")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.5", [1.5]),
        ("-0.25", [-0.25]),
        ("100", [100]),
        ("100.0", [100.0]),
        ("1e-05", [1e-05]),
        ("2.500000", ["2.500000"]),
        ("007", ["007"]),
        ("+1", ["+1"]),
        (".5", [".5"]),
        ("5.", ["5."]),
        ("-0", ["-0"]),
        ("1E3", ["1E3"]),
        ("1e400", ["1e400"]),
        ("9007199254740993", ["9007199254740993"]),
        ("1.00000000000000000001", ["1.00000000000000000001"]),
        (" 1.5 \\ 2.50", [1.5, "2.50"]),
        ("1\\\\3", [1, None, 3]),
        ("\\", [None, None]),
        ("  ", None),
        ("", None),
    ],
)
def test_a_decimal_is_a_number_where_that_keeps_its_text(text: str, expected: Any) -> None:
    assert values("DS", text) == expected
    raw = row(file(SOP, element(THICKNESS, "DS", text)))["Header"]
    assert '"Value":[100.0]' not in raw or text == "100.0"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("12", [12]), ("-3", [-3]), ("007", ["007"]), ("+5", ["+5"]), ("1\\\\2", [1, None, 2]), (" 4 ", [4])],
)
def test_an_integer_is_a_number_where_that_keeps_its_text(text: str, expected: Any) -> None:
    assert values("IS", text) == expected


@pytest.mark.parametrize(
    ("vr", "value"),
    [
        *(("DS", "2,5"), ("DS", "NaN"), ("DS", "inf"), ("DS", "1_0"), ("DS", "1 2"), ("DS", "0x10"), ("IS", "1.5")),
        *(("IS", "1A"), ("US", "abc"), ("FL", "abc"), ("FD", "abcdefg"), ("AT", "ab"), ("SV", "abcd"), ("SS", "a")),
    ],
)
def test_what_is_no_value_of_its_vr_stands_as_its_bytes_with_a_problem(vr: str, value: str) -> None:
    raw = element(0x00091001, vr, value)[8 if vr != "SV" else 12 :]
    if vr in ("US", "FL", "FD", "SS"):  # of a length that is none of theirs
        raw = value.encode()
        data = struct.pack("<HH2sH", 9, 0x1001, vr.encode(), len(raw)) + raw
    else:
        data = element(0x00091001, vr, value)
    found = row(file(SOP, element(0x00090010, "LO", "SOMEBODY"), data, element(0x00100010, "PN", "A^B")))
    assert parsed(found["Header"])["00091001"] == {"vr": "UN", "InlineBinary": base64.b64encode(raw).decode()}
    assert found["Problems"] == [f"00091001: {vr} {raw.decode().rstrip()!r}"]
    # It is this element only.
    assert parsed(found["Header"])["00100010"]["Value"] == [{"Alphabetic": "A^B"}]
    assert found["ElementCount"] == 4


def test_pydicom_raises_for_the_file_or_leaves_the_element_out() -> None:
    data = file(SOP, element(THICKNESS, "DS", "2,5"), element(NUMBER, "IS", "7"))
    with quiet():
        with pytest.raises(ValueError, match="could not convert"):
            by_pydicom(data).to_json_dict()
        assert "00180050" not in by_pydicom(data).to_json_dict(suppress_invalid_tags=True)
    found = row(data)
    assert found["Problems"] == ["00180050: DS '2,5'"]
    assert (found["SliceThickness"], found["InstanceNumber"]) == (None, 7)


def test_what_pydicom_loses() -> None:
    data = file(
        element(0x00080008, "CS", "A\\\\B"),
        element(THICKNESS, "DS", "2.500000"),
        element(0x00181242, "IS", "007"),
        element(0x00189087, "FD", struct.pack("<d", float("nan"))),
    )
    theirs, ours = by_pydicom(data), header(data)
    with pytest.raises(ValueError, match="not JSON compliant"):
        json.dumps(theirs.to_json_dict(), allow_nan=False)
    lost = theirs.to_json_dict()
    assert lost["00180050"]["Value"] == [2.5] and ours["00180050"]["Value"] == ["2.500000"]
    assert lost["00181242"]["Value"] == [7] and ours["00181242"]["Value"] == ["007"]
    assert lost["00080008"]["Value"] == ["A", "", "B"] and ours["00080008"]["Value"] == ["A", None, "B"]
    assert ours["00189087"]["Value"] == ["NaN"]
    assert pydicom.Dataset.from_json(ours).SliceThickness == 2.5


def test_what_is_no_number_of_json_is_a_text() -> None:
    numbers = [float("nan"), float("inf"), float("-inf"), 0.5]
    expected = ["NaN", "Infinity", "-Infinity", 0.5]
    assert values("FD", struct.pack("<4d", *numbers)) == expected
    assert values("FL", struct.pack("<4f", *numbers)) == expected


def test_numbers_of_bytes() -> None:
    assert values("SV", struct.pack("<q", -(2**63))) == [-(2**63)]
    assert values("UV", struct.pack("<2Q", 2**64 - 1, 1)) == [2**64 - 1, 1]
    assert values("US", struct.pack("<3H", 0, 1, 65535)) == [0, 1, 65535]
    assert values("SS", struct.pack("<h", -1)) == [-1]
    assert values("UL", struct.pack("<L", 2**32 - 1)) == [2**32 - 1]
    assert values("SL", struct.pack("<l", -(2**31))) == [-(2**31)]
    assert values("FL", struct.pack("<f", 0.1)) == [struct.unpack("<f", struct.pack("<f", 0.1))[0]]
    assert values("AT", struct.pack("<4H", 8, 0x18, 0x7FE0, 0x10)) == ["00080018", "7FE00010"]
    assert one("US", b"")["vr"] == "US" and "Value" not in one("US", b"")
    # The number of entries of a LUT is unsigned (PS3.3, C.11.1.1.1).
    assert one("SS", struct.pack("<3h", -1, -5, 16), 0x00283002)["Value"] == [65535, -5, 16]


def test_texts() -> None:
    assert values("CS", "A\\\\B ") == ["A", None, "B"]
    assert values("LO", " a \\b\0") == [" a", "b"]
    assert values("LT", "a\\b ") == ["a\\b"]
    assert values("AE", " A \\ B") == ["A", "B"]
    assert values("UI", "1.2\0") == ["1.2"]
    assert values("UR", "http://x/\\y ") == ["http://x/\\y"]
    assert values("LO", 'quote " and \x01') == ['quote " and \x01']
    assert values("PN", "A^B=C^D=") == [{"Alphabetic": "A^B", "Ideographic": "C^D"}]
    assert values("PN", "A^B\\\\C") == [{"Alphabetic": "A^B"}, None, {"Alphabetic": "C"}]
    assert values("PN", "=C^D") == [{"Alphabetic": "", "Ideographic": "C^D"}]
    assert one("OB", b"\0\1") == {"vr": "OB", "InlineBinary": "AAE="}


@pytest.mark.parametrize(
    ("charset", "value", "text"),
    [
        ("ISO_IR 100", "Müller".encode("latin1"), "Müller"),
        ("ISO_IR 192", "Мария 王".encode(), "Мария 王"),
        ("ISO_IR 144", "Люкceмб".encode("iso8859_5"), "Люкceмб"),
        ("GB18030", "王小东".encode("gb18030"), "王小东"),
        ("\\ISO 2022 IR 87", b"a \x1b$B;3ED\x1b(B b", "a 山田 b"),
        ("ISO 2022 IR 6\\ISO 2022 IR 149", b"\x1b$)C\xb1\xe8\xc8\xf1\xc1\xdf", "김희중"),
        ("ISO 2022 IR 13\\ISO 2022 IR 87", b"\xd4\xcf\xc0\xde", "ﾔﾏﾀﾞ"),
    ],
)
def test_text_is_by_the_character_set(charset: str, value: bytes, text: str) -> None:
    set_of = element(0x00080005, "CS", charset)
    assert one("LO", value, 0x00081030, set_of) == {"vr": "LO", "Value": [text]}
    assert row(file(set_of, SOP, element(0x00081030, "LO", value)))["Header"].encode()
    # In an item that states none it is that of the data set around it, and in one that states another, that.
    around = file(set_of, SOP, nested(0x00081140, element(0x00081030, "LO", value)))
    assert header(around)["00081140"]["Value"] == [{"00081030": {"vr": "LO", "Value": [text]}}]
    inside = element(0x00080005, "CS", "ISO_IR 192") + element(0x00081030, "LO", "王".encode())
    for last in (0x00082111, 0x00081090):  # the other one is out of order, for pydicom
        found = header(file(set_of, SOP, nested(0x00081140, inside), element(last, "LO", value)))
        assert found["00081140"]["Value"][0]["00081030"]["Value"] == ["王"]
        assert found[f"{last:08X}"]["Value"] == [text]


def test_what_cannot_be_decoded_stands_as_its_bytes() -> None:
    name = element(0x00100010, "PN", b"\xff\xfe^\xc3")
    found = row(file(element(0x00080005, "CS", "ISO_IR 192"), SOP, name, element(0x00100020, "LO", "P")))
    assert parsed(found["Header"])["00100010"] == {"vr": "UN", "InlineBinary": "//5eww=="}
    assert found["Problems"] == ["00100010: PN 'ÿþ^Ã'"]
    assert found["PatientID"] == "P"
    # In a sequence the problem says where.
    found = row(file(element(0x00080005, "CS", "ISO_IR 192"), SOP, nested(0x00081140, nested(0x00081199, name))))
    assert found["Problems"] == ["00081140.00081199.00100010: PN 'ÿþ^Ã'"]
    # The same bytes, elsewhere.
    assert one("PN", b"\xff\xfe^\xc3", 0x00100010)["Value"] == [{"Alphabetic": "ÿþ^Ã"}]


def test_halves_of_surrogate_pairs_are_no_text() -> None:
    data = file(element(0x00080005, "CS", "raw_unicode_escape"), SOP, element(0x00204000, "LT", b"\\ud800"))
    found = row(data)
    assert found["Problems"] == ["00204000: LT '\\\\ud800'"]
    assert parsed(found["Header"])["00204000"]["vr"] == "UN"


def test_private_elements() -> None:
    gems = [element(0x00190010, "LO", "GEMS_ACQU_01"), element(0x00191002, "SL", struct.pack("<l", 912))]
    assert header(file(SOP, *gems))["00191002"] == {"vr": "SL", "Value": [912]}
    implicit = [element(0x00190010, "", "GEMS_ACQU_01"), element(0x00191002, "", struct.pack("<l", 912))]
    unknown = [element(0x00290010, "", "NOBODY"), element(0x00291002, "", b"\1\2"), element(0x002B1002, "", b"\1\2")]
    found = header(file(element(0x00080018, "", "1.2\0"), *implicit, *unknown, syntax=IMPLICIT))
    assert found["00190010"] == {"vr": "LO", "Value": ["GEMS_ACQU_01"]}
    assert found["00191002"] == {"vr": "SL", "Value": [912]}
    assert found["00291002"] == found["002B1002"] == {"vr": "UN", "InlineBinary": "AQI="}
    assert header(file(SOP, gems[0], element(0x00191002, "UN", struct.pack("<l", 5))))["00191002"]["Value"] == [5]


@pytest.mark.parametrize(("signed", "vr", "number"), [(0, "US", 65535), (1, "SS", -1)])
def test_a_vr_that_depends_on_others(signed: int, vr: str, number: int) -> None:
    word = struct.pack("<H", 65535)
    data = file(
        element(0x00080018, "", "1.2\0"),
        element(0x00280103, "", struct.pack("<H", signed)),
        element(0x00280106, "", word),
        element(0x00283010, "", struct.pack("<HHL", 0xFFFE, 0xE000, 10) + element(0x00283006, "", word)),
        element(0x00409096, "", struct.pack("<HHL", 0xFFFE, 0xE000, 10) + element(0x00409211, "", word)),
        element(0x60003000, "", word),
        syntax=IMPLICIT,
    )
    found = header(data)
    assert found["00280106"] == {"vr": vr, "Value": [number]}
    assert found["00409096"]["Value"] == [{"00409211": {"vr": vr, "Value": [number]}}]
    assert found["00283010"]["Value"] == [{"00283006": {"vr": "US", "Value": [65535]}}]
    assert found["60003000"] == {"vr": "OW", "InlineBinary": "//8="}
    # In a sequence before PixelRepresentation it is pydicom that knows.
    early = element(0x00082112, "", struct.pack("<HHL", 0xFFFE, 0xE000, 10) + element(0x00280106, "", word))
    late = element(0x00280103, "", struct.pack("<H", signed))
    found = header(file(element(0x00080018, "", "1.2\0"), early, late, syntax=IMPLICIT))
    assert found["00082112"]["Value"] == [{"00280106": {"vr": vr, "Value": [number]}}]


def test_no_group_lengths_and_no_pixel_data() -> None:
    length = element(0x00080000, "UL", struct.pack("<L", 16))
    icon = nested(0x00880200, length + element(0x00280010, "US", b"\1\0"))
    pixels = element(0x7FE00010, "OW", bytes(8))
    found = row(file(length, SOP, icon, pixels))
    assert [*parsed(found["Header"])] == ["00080018", "00880200"]
    assert parsed(found["Header"])["00880200"]["Value"] == [{"00280010": {"vr": "US", "Value": [1]}}]
    assert [*parsed(found["FileMeta"])] == ["00020002", "00020003", "00020010"]
    assert found["ElementCount"] == 4
    assert found["Omitted"] is None


def deep(depth: int, undefined: bool) -> bytes:
    content = element(0x00100010, "PN", "A")
    for _ in range(depth):
        item = struct.pack("<HHL", 0xFFFE, 0xE000, len(content)) + content
        content = nested(0x00081140, content) if undefined else element(0x00081140, "SQ", item)
    return content


@pytest.mark.parametrize("undefined", [True, False])
def test_sequences_of_any_depth(undefined: bool) -> None:
    found = header(file(SOP, deep(DEEPEST, undefined)))["00081140"]
    for _ in range(DEEPEST - 1):
        (item,) = found["Value"]
        found = item["00081140"]
    assert found["Value"] == [{"00100010": {"vr": "PN", "Value": [{"Alphabetic": "A"}]}}]


@pytest.mark.parametrize("undefined", [True, False])
@pytest.mark.parametrize("more", [1, 2, 900])
def test_what_is_deeper_stays_in_the_file(undefined: bool, more: int) -> None:
    data = file(SOP, deep(DEEPEST + more, undefined), element(0x00100020, "LO", "P"))
    found = row(data)
    text = parsed(found["Header"])
    (omitted,) = found["Omitted"]
    place = f"{PATH}?offset={omitted['Offset']}&length={omitted['Length']}"
    assert found["Header"].count('"00081140"') == DEEPEST + 1
    assert f'"00081140":{{"vr":"SQ","BulkDataURI":"{place}"}}' in found["Header"]
    assert found["Problems"] == [f"00081140: more than {DEEPEST} sequences are inside each other"]
    assert text["00100020"]["Value"] == ["P"]
    value = data[omitted["Offset"] :][: omitted["Length"]]
    inside = nested(0x00081140, deep(more - 1, undefined)) if undefined else deep(more, undefined)
    assert element(0x00081140, "SQ", value)[12:] == inside[12:]


@pytest.mark.parametrize("undefined", [True, False])
def test_large_values_stay_in_the_file(undefined: bool) -> None:
    item = element(0x30060050, "DS", "1\\2\\3")
    many = struct.pack("<HHL", 0xFFFE, 0xE000, len(item)) + item
    count = (1 << 16) // len(many) + 1
    sequence = nested(0x30060039, item, items=4000) if undefined else element(0x30060039, "SQ", many * count)
    just = bytes(1 << 16)
    parts = [SOP, element(0x00189004, "OB", just), element(0x00281201, "OW", just + b"\0\0"), sequence]
    data = file(*parts, element(0x30060080, "LO", "last"))
    found = row(data)
    text = parsed(found["Header"])
    first, second = found["Omitted"]
    assert len(base64.b64decode(text["00189004"]["InlineBinary"])) == 1 << 16
    assert (first["Tag"], first["VR"], first["Length"]) == ("00281201", "OW", (1 << 16) + 2)
    assert data[first["Offset"] :][: first["Length"]] == just + b"\0\0"
    assert (second["Tag"], second["VR"]) == ("30060039", "SQ")
    assert data[second["Offset"] :][: second["Length"]] == sequence[12:]
    assert text["30060039"] == {
        "vr": "SQ",
        "BulkDataURI": f"{PATH}?offset={second['Offset']}&length={second['Length']}",
    }
    assert text["30060080"]["Value"] == ["last"]
    assert found["HeaderBytes"] == len(data) and found["Problems"] is None


@given(st.sampled_from("AE AS CS DA DT TM UI LO SH UC LT ST UT UR PN DS IS".split()), st.binary(max_size=40))
def test_json_is_json_whatever_the_bytes(vr: str, value: bytes) -> None:
    for charset in (b"", b"ISO_IR 192", b"ISO 2022 IR 6\\ISO 2022 IR 87", b"utf_7", b"rot13", b"hex"):
        try:
            text, _ = fragment(0x00091001, vr, value, encodings_of(charset))
        except (ValueError, LookupError):
            continue
        json.loads(text.encode())
