"""References: every item with a ReferencedSOPInstanceUID (0008,1155) is in an edge, with its role."""

from __future__ import annotations

import io
import random
import struct
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom._uid_dict import UID_dictionary
from pydicom.filereader import read_dataset

from nbia_pipeline.embedded.demo.catalog import demo_plans
from nbia_pipeline.embedded.phantoms.store import PhantomStore
from nbia_pipeline.headers.graph import tree
from nbia_pipeline.headers.graph.edges import MANAGEMENT, Edge
from nbia_pipeline.headers.graph.regions import Region
from nbia_pipeline.headers.graph.tree import DEPTH
from nbia_pipeline.schema.headers import ANNOTATIONS, INSTANCE_REFERENCES
from nbia_pipeline_tests.helpers import dicom_objects
from nbia_pipeline_tests.helpers.dicom_bytes import element
from nbia_pipeline_tests.helpers.dicom_objects import FIRST, MAKERS, SECOND, STUDY
from nbia_pipeline_tests.helpers.references import Opened, by_pydicom, edges_of, of_bytes, opened, regions_of

CT, SEG, RTSTRUCT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.481.3"
GSPS, SR = "1.2.840.10008.5.1.4.1.1.11.1", "1.2.840.10008.5.1.4.1.1.88.34"
DETACHED_STUDY = "1.2.840.10008.3.1.2.3.1"


def sequence(tag: int, *items: bytes, vr: str = "SQ", undefined: bool = False) -> bytes:
    """Return a sequence of items, with lengths or with delimiters."""
    if not undefined:
        return element(tag, vr, b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in items))
    start, end, last = (
        struct.pack("<HHI", 0xFFFE, n, length) for n, length in ((0xE000, 2**32 - 1), (0xE00D, 0), (0xE0DD, 0))
    )
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + (vr.encode() + b"\0\0" if vr else b"") + b"\xff" * 4
    return head + b"".join(start + item + end for item in items) + last


def item(instance: str | bytes = "1.2.3", kind: Any = CT, **more: Any) -> bytes:
    """Return the elements of an item that refers to an instance."""
    return element(0x00081150, "UI", kind) + element(0x00081155, "UI", instance) + b"".join(more.values())


def within(path: str, content: bytes, **how: Any) -> bytes:
    """Return an item's content within the sequences of a TagPath."""
    for tag in reversed(path.split(".")):
        content = sequence(int(tag, 16), content, **how)
    return content


def found(data: bytes, sop_class: str = CT, problems: list[str] | None = None) -> list[Edge]:
    return edges_of(of_bytes(data, True, sop_class), problems)


EDGES = pa.struct([INSTANCE_REFERENCES.schema.field(name) for name in Edge._fields])
REGIONS = pa.struct([ANNOTATIONS.schema.field(name) for name in Region._fields])
SERIES = element(0x0020000E, "UI", "1.2.8")
IN_STUDY = element(0x0020000D, "UI", "1.2.9")


@pytest.mark.parametrize(
    ("sop_class", "path", "role"),
    [
        (SEG, "00081115.0008114A", "described"),
        (SEG, "00081200.00081115.0008114A", "described"),
        (SEG, "52009230.00089124.00082112", "frame_source"),
        (SEG, "52009229.00089124.00082112", "frame_source"),
        (CT, "00082112", "source"),
        (CT, "00420013", "source"),
        (CT, "00081140", "related"),
        (CT, "52009230.00081140", "related"),
        (RTSTRUCT, "30060010.30060012.30060014.30060016", "described"),
        (RTSTRUCT, "30060039.30060040.30060016", "contour"),
        ("1.2.840.10008.5.1.4.1.1.481.5", "300C0060", "structure_set"),
        ("1.2.840.10008.5.1.4.1.1.481.2", "300C0002", "plan"),
        ("1.2.840.10008.5.1.4.1.1.481.5", "300C0080", "dose"),
        ("1.2.840.10008.5.1.4.1.1.481.4", "30080030", "record"),
        ("1.2.840.10008.5.1.4.1.1.481.1", "00081140", "related"),
        (SR, "0040A375.00081115.00081199", "evidence"),
        (SR, "0040A385.00081115.00081199", "evidence"),
        (SR, "0040A730.00081199", "content"),
        (SR, "0040A730.0040A730.0040A730.00081199", "content"),
        (SR, "0040A730.00081199.00081199", "content"),
        (SR, "0040A360.00081115.00081199", "predecessor"),
        (SR, "0040A525.00081115.00081199", "identical"),
        (GSPS, "00081115.00081140", "presented"),
        (CT, "00081115.00081140", "described"),
        (GSPS, "0070005A.00081140", "presented"),
        (GSPS, "00700001.00081140", "annotated"),
        (GSPS, "00700402.00081115.00081140", "blended"),
        ("1.2.840.10008.5.1.4.1.1.66.1", "00700308.00081140", "registered"),
        ("1.2.840.10008.5.1.4.1.1.66.3", "00640002.00081140", "registered"),
        ("1.2.840.10008.5.1.4.1.1.67", "00409094.00081140", "mapped"),
        ("1.2.840.10008.5.1.4.1.1.66.2", "0070031C.00081140", "fiducial"),
        ("1.2.840.10008.5.1.4.1.1.66.2", "0070031C.0070031E.00700318.00081140", "fiducial"),
        (CT, "00081250.00081199", "other"),
    ],
)
def test_the_role_follows_from_the_sequences_around_a_reference(sop_class: str, path: str, role: str) -> None:
    expected = Edge(role, path, "1.2.3", CT, None, None, None, 1, None, None)
    assert found(within(path, item()), sop_class) == [expected]
    assert found(within(path, item(), undefined=True), sop_class) == [expected]


def test_series_and_study_are_those_of_the_nearest_item_around_though_they_come_after_what_they_hold_for() -> None:
    inner = sequence(0x0008114A, item("1.1"), item("1.2")) + SERIES
    other = sequence(0x0008114A, item("1.3")) + element(0x0020000E, "UI", "1.2.7")
    study = sequence(0x00081200, sequence(0x00081115, inner, other) + IN_STUDY)
    stated = {e.ReferencedSOPInstanceUID: (e.StatedSeriesInstanceUID, e.StatedStudyInstanceUID) for e in found(study)}
    assert stated == {"1.1": ("1.2.8", "1.2.9"), "1.2": ("1.2.8", "1.2.9"), "1.3": ("1.2.7", "1.2.9")}
    # Those of the instance itself are none of its targets.
    assert found(sequence(0x00081140, item()) + IN_STUDY + SERIES)[0][4:6] == (None, None)
    # An item with both is the nearest one.
    assert found(sequence(0x00081140, item(more=SERIES)))[0].StatedSeriesInstanceUID == "1.2.8"


def test_the_study_of_a_structure_set_is_an_instance_of_study_management() -> None:
    series = sequence(0x30060014, SERIES + sequence(0x30060016, item("1.1")))
    for kind in (DETACHED_STUDY, CT, ""):
        study = item("1.2.9", kind, more=series)
        (edge,) = found(within("30060010.30060012", study), RTSTRUCT)
        assert edge[2:6] == ("1.1", CT, "1.2.8", "1.2.9")


def test_references_to_patients_studies_and_procedure_steps_are_none_to_files() -> None:
    for tag in (0x00081110, 0x00081111, 0x00081120):
        assert found(sequence(tag, item()) + sequence(0x0040A370, sequence(tag, item()))) == []
    assert found(sequence(0x00081199, item(kind=DETACHED_STUDY))) == []
    # But an image that such an item refers to is one.
    steps = sequence(0x00081199, item("1.1", "1.2.840.10008.3.1.2.3.3", more=sequence(0x00081140, item("1.2"))))
    assert [e.ReferencedSOPInstanceUID for e in found(steps)] == ["1.2"]
    words = ("Detached", "Study Component", "Procedure Step", "General Purpose Worklist")
    classes = {uid: name for uid, (name, kind, *_) in UID_dictionary.items() if kind == "SOP Class"}
    named = {uid for uid, name in classes.items() if any(word in name for word in words)}
    assert {uid for uid in classes if uid.startswith(MANAGEMENT)} == named


def test_series_that_are_named_without_instances_are_edges_to_series() -> None:
    edge = ("described", "00081115", None, None, "1.2.8", None, None, 1, None, None)
    assert found(sequence(0x00081115, SERIES), SEG) == [edge]
    assert found(sequence(0x00081115, sequence(0x0008114A) + SERIES), SEG) == [edge]
    (evidence,) = found(within("0040A375", sequence(0x00081115, SERIES) + IN_STUDY), SR)
    assert evidence == ("evidence", "0040A375.00081115", None, None, "1.2.8", "1.2.9", None, 1, None, None)
    (series,) = found(
        within("30060010.30060012", item("1.2.9", DETACHED_STUDY, more=sequence(0x30060014, SERIES))), RTSTRUCT
    )
    assert series[:6] == ("described", "30060010.30060012.30060014", None, None, "1.2.8", "1.2.9")


def concept(value: str, scheme: str, meaning: str, tag: int = 0x0040A043) -> bytes:
    code = element(0x00080100, "SH", value) + element(0x00080102, "SH", scheme) + element(0x00080104, "LO", meaning)
    return sequence(tag, code)


def test_the_source_series_of_a_segment_in_a_report_is_an_edge_to_a_series() -> None:
    name, value = concept("121232", "DCM", "Source series for segmentation"), element(0x0040A124, "UI", "1.2.8")
    edge = ("content", "0040A730.0040A730", None, None, "1.2.8", None, "Source series for segmentation", 1, None, None)
    assert found(within("0040A730.0040A730", name + value), SR) == [edge]
    assert found(within("0040A730", concept("112002", "DCM", "Series Instance UID") + value), SR) == []


def test_an_instance_is_in_one_edge_for_each_role_with_all_its_frames_and_segments() -> None:
    def frames(text: str, *segments: int) -> dict[str, bytes]:
        return {
            "f": element(0x00081160, "IS", text),
            "s": element(0x0062000B, "US", struct.pack(f"<{len(segments)}H", *segments)),
        }

    data = sequence(0x00081140, item("1.1"), item("1.1"), item("1.2")) + within(
        "0040A730",
        sequence(0x00081199, item("1.1", **frames("3\\1", 2)), item("1.1", **frames("2\\1 ", 1, 2)), item("1.1")),
    )
    assert [(e.Role, *e[2:3], *e[7:]) for e in found(data)] == [
        ("related", "1.1", 2, None, None),
        ("related", "1.2", 1, None, None),
        ("content", "1.1", 3, [1, 2, 3], [1, 2]),
    ]


def test_the_purpose_is_that_of_the_reference_and_in_a_report_the_name_of_what_it_is_in() -> None:
    purpose = concept("121322", "DCM", "Source image for image processing operation", 0x0040A170)
    assert found(sequence(0x00082112, item(more=purpose)))[0].Purpose == "Source image for image processing operation"
    report = within("0040A730", sequence(0x00081199, item()) + concept("121112", "DCM", "Source of Measurement "))
    assert found(report, SR)[0].Purpose == "Source of Measurement"


@pytest.mark.parametrize("undefined", [False, True])
def test_bad_input_is_rows_or_problems(undefined: bool) -> None:
    problems: list[str] = []
    names = [b"1.2.3\0", b" 1.2.3 ", b"1.2.3\0\0\0", b"\0", b"", b"1.2.4\\1.2.5", b"\xff\0"]
    data = sequence(0x00081140, *(item(name) for name in names), undefined=undefined)
    expected = {"1.2.3": 3, "1.2.4": 1, "1.2.5": 1, "\xff": 1}
    assert {e.ReferencedSOPInstanceUID: e.Times for e in found(data, CT, problems)} == expected
    assert problems == ["00081140: a ReferencedSOPInstanceUID is empty"]
    # The second time it is not taken from memory without its problem.
    assert len(found(data, CT, problems := [])) == 4
    assert len(problems) == 1
    for empty in (sequence(0x00081140, undefined=undefined), sequence(0x00081140, b"", b"", undefined=undefined)):
        assert not found(empty, CT, problems := [])
        assert not problems
    numbers = element(0x00081160, "IS", "1\\x\\\\99999999999999999999\\2.5\\-1") + element(0x0062000B, "US", b"\1\0\2")
    (edge,) = found(sequence(0x00081199, item(more=numbers), undefined=undefined))
    assert (edge.Frames, edge.Segments) == ([-1, 1], [1, 8194])


def test_what_does_not_go_on_is_a_problem_and_what_comes_before_counts() -> None:
    good, odd = item("1.1"), item("1.2") + b"\xfe\xff\x0d\xe0\0\0\0\0"
    for content, text in (
        (sequence(0x00081140, good, odd), "an item ends where it should not"),
        (
            element(0x00081140, "SQ", sequence(0x00081140, good)[12:] + b"\1\0\2\0\0\0\0\0"),
            "no item is where one should begin",
        ),
        (sequence(0x00081140, good, item("1.3")[:-2]), "an element is longer than what it is in"),
        (sequence(0x00081140, good, good + b"\x08\0"), "its bytes end too early"),
    ):
        problems: list[str] = []
        edges = edges_of(Opened(CT, [(0x00081140, "SQ", 12, len(content) - 12)], content, True), problems)
        assert edges[0].ReferencedSOPInstanceUID == "1.1"
        assert problems == [f"00081140: {text}"]


@pytest.mark.parametrize("long", [False, True])
def test_an_item_does_not_go_beyond_its_sequence(long: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "_LONG_BYTES", 0 if long else 1 << 30)
    data = sequence(0x00081140, *(item(f"1.{n}") for n in range(1, 5)))
    problems: list[str] = []
    edges = edges_of(Opened(CT, [(0x00081140, "SQ", 12, len(data) - 14)], data, True), problems)
    assert [e.ReferencedSOPInstanceUID for e in edges] == ["1.1", "1.2", "1.3"]
    assert problems == ["00081140: an item is longer than what it is in"]


@pytest.mark.parametrize("undefined", [False, True])
def test_sequences_in_place_of_values_are_none(undefined: bool) -> None:
    tags = (0x00080104, 0x00081150, 0x00081155, 0x00081160, 0x0020000D, 0x0020000E, 0x00200032, 0x0040A124, 0x0062000B)
    odd = b"".join(sequence(tag, item("1.1"), undefined=undefined) for tag in tags)
    inner = odd + b"".join(sequence(tag, odd) for tag in (0x00082112, 0x0040A043, 0x0040A170, 0x30060016))
    for path in ("00081115", "0040A730", "30060010.30060012", "52009230.00089124", "52009230.00209113"):
        what = of_bytes(within(path, inner) + sequence(0x00620002, inner) + sequence(0x30060020, inner), True, SEG)
        assert {e.ReferencedSOPInstanceUID for e in edges_of(what)} >= {"1.1"}
        assert [r.Kind for r in regions_of(what)] == ["segment", "roi"]


def test_damaged_bytes_are_rows_or_problems(request: pytest.FixtureRequest) -> None:
    files = [*(make() for make in MAKERS), *(file for file in demo_files().values() if len(file) < 50_000)]
    chance = random.Random(1)
    for what in map(opened, files):
        for _ in range(2000 if request.config.getoption("--every-moment") else 20):
            data = bytearray(what.buffer)
            for _ in range(chance.choice((1, 1, 3, 20))):
                data[chance.randrange(len(data))] = chance.choice((0, 1, 0x51, 0xFE, 0xFF, chance.randrange(256)))
            damaged = what._replace(buffer=bytes(data[: chance.choice((len(data), chance.randrange(len(data))))]))
            edges = edges_of(damaged)
            pa.array([edge._asdict() for edge in edges], EDGES)
            pa.array([region._asdict() for region in regions_of(damaged, None, edges)], REGIONS)


def test_sequences_in_each_other_end_somewhere() -> None:
    deep = item()
    for _ in range(DEPTH):
        deep = sequence(0x00081140, deep)
    assert len(found(deep)) == 1
    for undefined in (False, True):
        problems: list[str] = []
        deeper = sequence(0x00081140, deep, item("1.9"), undefined=undefined)
        assert [e.ReferencedSOPInstanceUID for e in found(deeper, CT, problems)] == ["1.9"]
        assert problems == [f"00081140: more than {DEPTH} sequences are in each other"]


def test_sequences_of_unknown_vr_are_read_and_values_that_look_like_tags_are_not() -> None:
    implicit = element(0x00081155, "", "1.2.3\0")
    for undefined in (False, True):
        inner = sequence(0x00091001, implicit, vr="UN", undefined=undefined)
        data = sequence(0x00081140, inner)
        (edge,) = edges_of(Opened(CT, [(0x00081140, "SQ", 12, len(data) - 12)], data, True))
        assert edge[:3] == ("other", "00081140.00091001", "1.2.3")
    looks = element(0x00104000, "LT", "\x08\0\x55\x11UI\x06\x001.2.3\0") + element(
        0x00091001, "UN", b"\x08\0\x55\x11UI"
    )
    assert found(sequence(0x00081140, looks)) == []


def test_a_reference_without_sequence_is_one() -> None:
    assert found(element(0x00081155, "UI", "1.2.3")) == [("other", "", "1.2.3", *[None] * 4, 1, None, None)]


def test_a_million_edges(request: pytest.FixtureRequest) -> None:
    """A fiftieth of it, unless all is wanted."""
    count = 1_000_000 if request.config.getoption("--every-moment") else 20_000
    data = sequence(0x00081140, *(item(f"1.2.{n}") for n in range(count)))
    assert len(edges_of(Opened(CT, [(0x00081140, "SQ", 12, len(data) - 12)], data, True))) == count


def test_small_sequences_are_remembered_as_they_were() -> None:
    data = sequence(0x00081140, item(f=element(0x00081160, "IS", "1")), item(f=element(0x00081160, "IS", "2")))
    first, second = found(data), found(data)
    assert first == second
    assert first[0].Times == 2
    presented = sequence(0x00081115, sequence(0x00081140, item()))
    assert [found(presented, kind)[0].Role for kind in (CT, GSPS, CT)] == ["described", "presented", "described"]


# --- against pydicom


@lru_cache(maxsize=1)
def demo_files() -> dict[str, bytes]:
    """One image of each modality of the demo, and all files that refer to others."""
    plans = demo_plans()
    store = PhantomStore(plans)
    images = {plan.modality: plan for plan in plans if not plan.source}.values()
    some = [*images, *(plan for plan in plans if plan.source)]
    return {plan.uid: store.read(plan.uid, store.instances(plan.uid)[0].sop_instance_uid) for plan in some}


def agree(file: bytes) -> int:
    """Compare with pydicom; return how many references there are."""
    data = pydicom.dcmread(io.BytesIO(file), force=True)
    expected, got = Counter(by_pydicom(data)), Counter[Any]()
    names = Counter(name for _, name in expected.elements())
    problems: list[str] = []
    for edge in edges_of(opened(file), problems):
        if edge.ReferencedSOPInstanceUID:
            got[edge.ReferencedSOPInstanceUID] += edge.Times
            path = tuple(int(tag, 16) for tag in edge.TagPath.split("."))
            assert (path, edge.ReferencedSOPInstanceUID) in expected
    assert got == names
    assert not problems
    return sum(got.values())


def test_pydicom_finds_the_same_in_the_demo() -> None:
    counts = [agree(file) for file in demo_files().values()]
    assert sum(map(bool, counts)) >= 6
    assert sum(counts) > 150


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_pydicom_finds_the_same_in_its_own_files() -> None:
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    counts = {path.name: agree(path.read_bytes()) for path in sorted(folder.glob("*.dcm"))}
    assert len(counts) >= 60
    assert sum(map(bool, counts.values())) >= 30
    assert sum(counts.values()) >= 50


@pytest.mark.parametrize("make", MAKERS)
def test_pydicom_finds_the_same_in_objects_of_highdicom(make: Any) -> None:
    assert agree(make()) >= 2


def test_a_segmentation_over_two_series_names_both() -> None:
    described = [e for e in edges_of(opened(dicom_objects.seg_over_two_series())) if e.Role == "described"]
    assert Counter(e.StatedSeriesInstanceUID for e in described) == {FIRST: 4, SECOND: 2}


def test_a_report_names_its_evidence_its_segment_and_the_source_of_that() -> None:
    edges = edges_of(opened(dicom_objects.sr_tid1500()))
    assert Counter(e.Role for e in edges) == {"evidence": 5, "content": 3}
    assert {e.StatedStudyInstanceUID for e in edges if e.Role == "evidence"} == {STUDY}
    segment, source, _ = (e for e in edges if e.Role == "content")
    assert segment[2:] == ("1.2.6.3.1", SEG, None, None, "Referenced Segment", 1, [1, 2, 3], [1])
    assert source[2:6] == (None, None, FIRST, None)


# --- random ones


TAGS = st.sampled_from([0x00081140, 0x00082112, 0x00081115, 0x00081110, 0x30060012, 0x0040A730, 0x00081199])
NAMES = st.sampled_from(["1.1", "1.2", "1.2.33", ""])
ITEMS: st.SearchStrategy[Any] = st.deferred(
    lambda: st.tuples(
        st.one_of(st.none(), NAMES),
        st.sampled_from([CT, DETACHED_STUDY]),
        st.lists(NESTED, max_size=2, unique_by=lambda one: one[0]),
    )
)
NESTED: st.SearchStrategy[Any] = st.deferred(lambda: st.tuples(TAGS, st.booleans(), st.lists(ITEMS, max_size=3)))


def written(one: Any, implicit: bool) -> bytes:
    tag, undefined, items = one
    contents = []
    for name, kind, inner in items:
        stated = {0x00081150: element(0x00081150, "" if implicit else "UI", kind)} if name is not None else {}
        if name is not None:
            stated[0x00081155] = element(0x00081155, "" if implicit else "UI", name)
        stated |= {other[0]: written(other, implicit) for other in inner}
        contents.append(b"".join(stated[tag] for tag in sorted(stated)))
    return sequence(tag, *contents, vr="" if implicit else "SQ", undefined=undefined)


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("long", [False, True])
def test_pydicom_finds_the_same_in_any_sequences(
    implicit: bool, long: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each item comes again with other instances; in a long sequence it is not read another time then."""
    monkeypatch.setattr(tree, "_LONG_BYTES", 0 if long else 1 << 30)
    many = request.config.getoption("--every-moment")

    @settings(max_examples=300 if many else 12, deadline=None, database=None, derandomize=not many)
    @given(st.lists(NESTED, max_size=4, unique_by=lambda one: one[0]))
    def check(sequences: list[Any]) -> None:
        twice = ((tag, undefined, items + [renamed(one) for one in items]) for tag, undefined, items in sequences)
        data = b"".join(written(one, implicit) for one in sorted(twice))
        expected = Counter(by_pydicom(read_dataset(io.BytesIO(data), implicit, True)))
        got = Counter[str]()
        for edge in edges_of(of_bytes(data, not implicit, CT)):
            if edge.ReferencedSOPInstanceUID:
                got[edge.ReferencedSOPInstanceUID] += edge.Times
        assert got == Counter(name for _, name in expected.elements())

    check()


def renamed(one: Any) -> Any:
    """Return an item with other instances; empty names stay empty."""
    name, kind, inner = one
    others = {"1.1": "1.2", "1.2": "1.3", "1.2.33": "1.2.44", "": "", None: None}
    return others[name], kind, [(tag, undefined, [renamed(i) for i in items]) for tag, undefined, items in inner]
