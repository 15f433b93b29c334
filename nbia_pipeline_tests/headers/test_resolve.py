"""Table ``series_references``: where the targets of references are, by the tables of a real lake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nbia_pipeline.headers.graph.numbers import numbers_of
from nbia_pipeline.headers.graph.resolve import (
    affected,
    orphans,
    problems,
    resolve_references,
    write_references,
)
from nbia_pipeline.lake import Lake
from nbia_pipeline.schema.headers import SERIES_REFERENCES
from nbia_pipeline.schema.tables import IMAGE_SERIES, INSTANCES, SERIES, SERIES_SEEN
from nbia_pipeline_tests.helpers.referring import (
    CT,
    GONE,
    IMAGES,
    LISTED,
    OTHER,
    RESULTS,
    SEG,
    World,
    few_series,
    instance,
    rows,
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """See the helper."""
    return few_series(Lake(str(tmp_path / "lake"), fsync=False))


def test_targets_are_held_by_the_series_that_is_stated(world: World) -> None:
    world.refer(SEG, RESULTS, CT, f"{CT}.1", f"{CT}.2", f"{CT}.3")
    world.refer(SEG, RESULTS, OTHER, f"{OTHER}.1", f"{OTHER}.2")
    [first, second] = resolve_references(world.lake, RESULTS).to_pylist()
    assert first == {
        "SeriesInstanceUID": SEG,
        "Collection": RESULTS,
        "Modality": "SEG",
        "Role": "described",
        "ReferencedSeriesInstanceUID": CT,
        "ReferencedCollection": IMAGES,
        "ReferencedModality": "CT",
        "Resolution": "held",
        "ReferencedInstances": 3,
        "OfInstances": 4,
        "Missing": 0,
        "Coverage": 0.75,
        "SameStudy": True,
        "SamePatient": True,
        "Stated": True,
    }
    assert (second["ReferencedSeriesInstanceUID"], second["Coverage"]) == (OTHER, 1.0)


def test_each_resolution(world: World) -> None:
    world.refer(SEG, RESULTS, LISTED, f"{LISTED}.1", f"{LISTED}.2")
    world.refer(SEG, RESULTS, GONE, f"{GONE}.1")
    world.refer(SEG, RESULTS, None, "7.7")
    world.refer(SEG, RESULTS, CT, f"{OTHER}.1")
    world.refer(SEG, RESULTS, CT, f"{CT}.99", role="source")
    world.refer(SEG, RESULTS, CT, f"{CT}.1", f"{CT}.98", role="content")
    world.refer(SEG, RESULTS, "1.2.3", f"{OTHER}.2", role="content")
    assert world.resolved() == {
        (SEG, "described", LISTED): ("listed", 2, 2, IMAGES),
        (SEG, "described", GONE): ("unknown", 1, 1, None),
        (SEG, "described", None): ("unknown", 1, 1, None),
        (SEG, "described", OTHER): ("moved", 1, 0, IMAGES),
        (SEG, "source", CT): ("unknown", 1, 1, IMAGES),
        (SEG, "content", CT): ("held", 2, 1, IMAGES),
        (SEG, "content", OTHER): ("moved", 1, 0, IMAGES),
    }
    [listed] = [r for r in resolve_references(world.lake, RESULTS).to_pylist() if r["Resolution"] == "listed"]
    assert (listed["OfInstances"], listed["SameStudy"], listed["SamePatient"]) == (3, False, True)


def test_a_target_without_a_stated_series_is_of_the_one_that_has_it_or_that_another_reference_states(
    world: World,
) -> None:
    world.refer(SEG, RESULTS, None, f"{CT}.1", f"{LISTED}.1", role="contour")
    world.refer(SEG, RESULTS, LISTED, f"{LISTED}.1")
    assert world.resolved() == {
        (SEG, "contour", CT): ("held", 1, 0, IMAGES),
        (SEG, "contour", LISTED): ("listed", 1, 1, IMAGES),
        (SEG, "described", LISTED): ("listed", 1, 1, IMAGES),
    }


def test_an_instance_counts_once_however_often_it_is_named(world: World) -> None:
    for _ in range(3):
        world.refer(SEG, RESULTS, CT, f"{CT}.1", f"{CT}.1")
    world.refer(SEG, RESULTS, GONE, f"{CT}.1")
    assert world.resolved() == {(SEG, "described", CT): ("moved", 1, 0, IMAGES)}


def test_an_instance_that_two_series_have_is_of_the_stated_one(world: World) -> None:
    world.add(INSTANCES, IMAGES, {**instance(CT, 1), "SeriesInstanceUID": OTHER})
    world.series("7.7", "Third", "CT", 1)
    world.refer(SEG, RESULTS, OTHER, f"{CT}.1")
    world.refer(SEG, RESULTS, CT, f"{CT}.1")
    world.refer(SEG, RESULTS, None, "7.7.1")
    both = {(SEG, "described", uid): ("held", 1, 0, IMAGES) for uid in (CT, OTHER)}
    assert world.resolved() == {**both, (SEG, "described", "7.7"): ("held", 1, 0, "Third")}


def test_a_series_that_two_collections_list_is_of_the_one_that_has_its_files(world: World) -> None:
    world.series(OTHER, "Former", "CT", 1, held=False)
    world.refer(SEG, RESULTS, OTHER, f"{OTHER}.1")
    assert world.resolved() == {(SEG, "described", OTHER): ("held", 1, 0, IMAGES)}


def test_a_series_can_be_referred_to_as_a_whole(world: World) -> None:
    world.refer(SEG, RESULTS, CT, None, role="source")
    world.refer(SEG, RESULTS, LISTED, None, "", role="source")
    world.refer(SEG, RESULTS, GONE, None, role="source")
    world.refer(SEG, RESULTS, "", "", role="source")
    assert world.resolved() == {
        (SEG, "source", CT): ("held", 0, 0, IMAGES),
        (SEG, "source", LISTED): ("listed", 0, 0, IMAGES),
        (SEG, "source", GONE): ("unknown", 0, 0, None),
        (SEG, "source", None): ("unknown", 0, 0, None),
    }
    assert resolve_references(world.lake, RESULTS)["Coverage"].null_count == 4


def test_odd_references_are_rows(world: World) -> None:
    """To itself, in a circle, of a UID that is too long, of one with other letters, and without a role."""
    long = "1." + "2" * 100
    world.add(INSTANCES, IMAGES, {"SOPInstanceUID": long, "SeriesInstanceUID": CT})
    world.refer(SEG, RESULTS, SEG, f"{SEG}.1")
    world.refer(SEG, RESULTS, None, long, long + "3", "é.1")
    world.refer(SEG, RESULTS, CT, f"{CT}.1", role="")
    world.refer(CT, IMAGES, SEG, f"{SEG}.1", role="source")
    assert world.resolved() == {
        (SEG, "described", SEG): ("held", 1, 0, RESULTS),
        (SEG, "described", CT): ("held", 1, 0, IMAGES),
        (SEG, "described", None): ("unknown", 2, 2, None),
        (SEG, "", CT): ("held", 1, 0, IMAGES),
    }
    assert world.resolved(IMAGES) == {(CT, "source", SEG): ("held", 1, 0, RESULTS)}


def test_a_withdrawn_series_is_held_as_long_as_it_has_files(world: World) -> None:
    about = {"SeriesInstanceUID": GONE, "StudyInstanceUID": "1.1", "PatientID": "P2", "ImageCount": 2}
    world.add(IMAGE_SERIES, IMAGES, {**about, "Status": "withdrawn", "Bytes": 5})
    world.add(SERIES_SEEN, IMAGES, {**about, "Modality": "PT"})
    world.add(INSTANCES, IMAGES, instance(GONE, 1), instance(GONE, 2))
    world.refer(SEG, RESULTS, GONE, f"{GONE}.2")
    [row] = resolve_references(world.lake, RESULTS).to_pylist()
    assert (row["Resolution"], row["ReferencedModality"], row["Coverage"], row["SamePatient"]) == (
        "held",
        "PT",
        0.5,
        False,
    )


def test_without_references_the_images_of_one_frame_of_reference_and_study(world: World) -> None:
    for series, collection, modality, frame, study in (
        (SEG, RESULTS, "SEG", "3.3", "1.1"),
        (CT, IMAGES, "CT", "3.3", "1.1"),
        (OTHER, IMAGES, "CT", "3.4", "1.1"),
    ):
        world.head(series, collection, modality, frame, study)
    world.series("1.2.70", IMAGES, "RTSTRUCT", 1)
    world.head("1.2.70", IMAGES, "RTSTRUCT", "3.3")
    world.series("1.2.80", IMAGES, "CT", 1, StudyInstanceUID="1.5")
    world.head("1.2.80", IMAGES, "CT", "3.3", "1.5")
    assert world.resolved() == {(SEG, "frame_of_reference", CT): ("held", 0, 0, IMAGES)}
    assert resolve_references(world.lake, RESULTS)["Stated"].to_pylist() == [False]
    assert list(world.resolved(IMAGES)) == [("1.2.70", "frame_of_reference", CT)]
    world.refer(SEG, RESULTS, OTHER, f"{OTHER}.1")
    assert list(world.resolved()) == [(SEG, "described", OTHER)]


def test_a_collection_without_references_has_an_empty_table(world: World) -> None:
    assert write_references(world.lake, RESULTS).num_rows == 0
    assert world.lake.has_table(SERIES_REFERENCES, RESULTS)
    assert resolve_references(world.lake, "nowhere").num_rows == 0


def test_the_table_is_written_if_it_changed(world: World) -> None:
    world.refer(SEG, RESULTS, GONE, f"{GONE}.1")
    write_references(world.lake, RESULTS)
    [path] = Path(world.lake.uri).glob("tables/series_references/*/part-0.parquet")
    before = path.stat().st_mtime_ns
    write_references(world.lake, RESULTS)
    assert path.stat().st_mtime_ns == before
    world.series(GONE, IMAGES, "CT", 1)
    assert write_references(world.lake, RESULTS)["Resolution"].to_pylist() == ["held"]
    assert world.lake.read_table(SERIES_REFERENCES, RESULTS)["Resolution"].to_pylist() == ["held"]
    path.write_bytes(b"damaged")
    write_references(world.lake, RESULTS)
    assert world.lake.count_rows(SERIES_REFERENCES, RESULTS) == 1


@pytest.mark.parametrize("case", ["fetched", "listed now", "instances", "pruned", "grown", "nothing", "elsewhere"])
def test_the_collections_that_another_one_affects(world: World, case: str) -> None:
    world.refer(SEG, RESULTS, LISTED, f"{LISTED}.1")
    world.refer(SEG, RESULTS, CT, f"{CT}.1")
    world.refer(SEG, RESULTS, GONE, f"{GONE}.1")
    world.refer(SEG, RESULTS, None, "7.7.1")
    world.refer(SEG, RESULTS, OTHER, f"{OTHER}.9", role="source")
    write_references(world.lake, RESULTS)
    if case == "fetched":
        world.add(IMAGE_SERIES, IMAGES, receipt(LISTED, "complete", 3))
        world.add(INSTANCES, IMAGES, *(instance(LISTED, n) for n in (1, 2, 3)))
    elif case == "listed now":
        world.series(GONE, IMAGES, "CT", 3, held=False)
    elif case == "instances":
        world.series("7.7", IMAGES, "CT", 1)
    elif case == "pruned":
        world.lake.write_table(
            IMAGE_SERIES, rows(IMAGE_SERIES, [{**receipt(CT, "pending", 4), "Collection": IMAGES}]), IMAGES
        )
        world.lake.write_table(INSTANCES, INSTANCES.schema.empty_table(), IMAGES, may_empty=True)
    elif case == "grown":
        world.lake.write_table(SERIES, SERIES.schema.empty_table(), IMAGES, may_empty=True)
        changed = [receipt(CT, "complete", 5), receipt(LISTED, "pending", 3), receipt(OTHER, "complete", 2)]
        world.lake.write_table(IMAGE_SERIES, rows(IMAGE_SERIES, changed), IMAGES)
    elif case == "elsewhere":
        world.series("8.8", "Third", "CT", 1)
    expected = [] if case in ("nothing", "elsewhere") else [RESULTS]
    assert affected(world.lake, "Third" if case == "elsewhere" else IMAGES) == expected
    assert (resolve_references(world.lake, RESULTS) == world.lake.read_table(SERIES_REFERENCES, RESULTS)) != bool(
        expected
    )


def receipt(uid: str, status: str, images: int) -> dict[str, Any]:
    """Return a receipt."""
    about = {"SeriesInstanceUID": uid, "StudyInstanceUID": "1.1", "PatientID": "P1", "ImageCount": images}
    return {**about, "Status": status, "Bytes": images if status == "complete" else None}


def test_problems_are_those_of_annotations(world: World) -> None:
    world.refer(SEG, RESULTS, GONE, f"{GONE}.1", f"{GONE}.2")
    world.refer(SEG, RESULTS, CT, f"{OTHER}.1")
    world.refer(SEG, RESULTS, CT, f"{CT}.1", f"{CT}.9", role="content")
    world.refer(SEG, RESULTS, None, "7.7", role="contour")
    world.refer(SEG, RESULTS, LISTED, f"{LISTED}.1")
    world.refer(CT, IMAGES, GONE, f"{GONE}.1", role="source")
    for name in (IMAGES, RESULTS):
        write_references(world.lake, name)
    assert list(problems(world.lake, IMAGES)) == []
    assert dict(problems(world.lake, RESULTS)).keys() == {SEG}
    assert [sentence for _, sentence in problems(world.lake, RESULTS)] == [
        f"SEG {SEG} (content): of 2 instances of series {CT}, 1 are in no series of the lake",
        f"SEG {SEG} (contour) refers to 1 instances of a series that it does not name, which neither the lake nor the "
        "archive has",
        f"SEG {SEG} (described) states another series for some of the 1 instances that are in series {OTHER}",
        f"SEG {SEG} (described) refers to 2 instances of series {GONE}, which neither the lake nor the archive has",
    ]
    assert orphans(world.lake.read_table(SERIES_REFERENCES, RESULTS)).num_rows == 4


def test_the_numbers_of_uids_do_not_depend_on_the_piece_they_are_in() -> None:
    uids = ["1.2", None, "", "1.2.3", "1" * 64, "1" * 65, "1" * 66]
    together = numbers_of(pa.chunked_array([pa.array(uids, pa.string())]))
    alone = [numbers_of(pa.chunked_array([pa.array([uid], pa.string())]))[0] for uid in uids]
    sliced = numbers_of(pa.chunked_array([pa.array(["9", *uids], pa.string()).slice(1)]))
    assert together.tolist() == alone == sliced.tolist()
    assert numbers_of(pa.chunked_array([[]], pa.string())).tolist() == []
    assert (together[1], together[2], len(set(alone))) == (0, 0, 6)
    scattered = [f"1.2.345{a}.567891{b}.987654{c}" for a in range(10) for b in range(10) for c in range(10)]
    assert len(set(numbers_of(pa.chunked_array([scattered])).tolist())) == 1000
