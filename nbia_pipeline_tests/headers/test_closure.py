"""What the references of selected series lead to is fetched, exactly that, and nothing on the second run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.cli.main import main
from nbia_pipeline.cli.options import Options
from nbia_pipeline.cli.referenced import references_fields, references_lines
from nbia_pipeline.cli.run import command
from nbia_pipeline.definitions import build_definitions
from nbia_pipeline.defs.assets.follow_op import asked_of
from nbia_pipeline.defs.checks.images import incomplete
from nbia_pipeline.defs.jobs import images_config
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.headers.shards import files, plan_headers, write_shard
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.layout import TABLES
from nbia_pipeline.mirror.engine import Mirror, MirrorResult
from nbia_pipeline.mirror.plan import Bounds
from nbia_pipeline.mirror.receipt import Receipt, problem_rows
from nbia_pipeline.mirror.references import edges
from nbia_pipeline.mirror.references.closure import KINDS, Followed, selected
from nbia_pipeline.mirror.references.preview import foresee
from nbia_pipeline.mirror.selection import ALL_WANTED, Selection, SelectionError, Selections
from nbia_pipeline.mirror.series import WantedSeries
from nbia_pipeline.schema.arrow import with_column
from nbia_pipeline.schema.tables import COLLECTIONS, IMAGE_SERIES, INSTANCES, LICENSES, SERIES
from nbia_pipeline.settings import Settings
from nbia_pipeline_tests.helpers import references_of_demo as demo
from nbia_pipeline_tests.helpers.archives import TestArchive
from nbia_pipeline_tests.helpers.places import copied
from nbia_pipeline_tests.helpers.references_of_demo import Key, uid

HEAD, CHEST = "HeadNeckMix", "TCGA-DEMO"
DOWNLOAD = "getImageWithMD5Hash"
# Of a plan by way of its structure set, of another study, of a wrong series, of another collection, of no series.
CHOSEN = (
    demo.DOSE,
    demo.SEG_OF_OTHER_STUDY,
    demo.SEG_OF_WRONG_SERIES,
    demo.SEG_OF_OTHER_COLLECTION,
    demo.ORPHAN,
)


@pytest.fixture(scope="module")
def tables(demo_archive: str, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A lake with the tables of two collections."""
    lake = Lake(str(tmp_path_factory.mktemp("closure") / "lake"), fsync=False)
    with NbiaClient(demo_archive) as client:
        for collection in (HEAD, CHEST):
            Mirror(client, lake).update_tables(collection)
    return lake


@pytest.fixture
def mirror(client: NbiaClient, tables: Lake, tmp_path: Path) -> Mirror:
    """A mirror with such a lake of its own, which lists nothing anew."""
    return _Mirror(client, copied(Path(tables.uri), tmp_path / "lake"), annotations=False)


class _Mirror(Mirror):
    def update_tables(self, collection: str, *, allow_lost_columns: bool = False) -> None:
        assert self.lake.count_rows(SERIES, collection)


def run(mirror: Mirror, *series: Key, kinds: Sequence[str] = ("images",), **how: Any) -> MirrorResult:
    return mirror.run(HEAD, Selection(series=tuple(map(uid, series))), with_references=kinds, **how)


def followed(mirror: Mirror, *series: Key, **how: Any) -> Followed:
    found = run(mirror, *series, **how).referenced
    assert found is not None
    return found


def fetched(found: Followed) -> set[str]:
    return {receipt.wanted.SeriesInstanceUID for receipt in found.fetched}


def receipts(lake: Lake, collection: str) -> dict[str, dict[str, Any]]:
    return {row["SeriesInstanceUID"]: row for row in lake.read_table(IMAGE_SERIES, collection).to_pylist()}


def test_exactly_what_is_referred_to_is_fetched_and_nothing_again(archive: TestArchive, mirror: Mirror) -> None:
    found = followed(mirror, *CHOSEN)
    images = frozenset().union(*(demo.IMAGES_OF[key] for key in CHOSEN))
    assert fetched(found) == set(map(uid, images))
    assert found.lost == {demo.UNKNOWN_SERIES: uid(demo.ORPHAN)}
    assert (found.there, found.left) == (0, {})

    # The receipts are with the series, in whatever collection, and say for whom.
    lake = mirror.lake
    by_uid = {**receipts(lake, HEAD), **receipts(lake, CHEST)}
    chest = by_uid[uid(demo.CHEST_CT)]
    assert (chest["Collection"], chest["Status"]) == (CHEST, "complete")
    assert chest["Reason"] == f"referenced by SEG series {uid(demo.SEG_OF_OTHER_COLLECTION)} of {HEAD}"
    assert by_uid[uid(demo.PLAN)]["Reason"] == f"referenced by RTDOSE series {uid(demo.DOSE)} of {HEAD}"
    assert by_uid[uid(demo.STRUCTURES)]["Reason"] == f"referenced by RTPLAN series {uid(demo.PLAN)} of {HEAD}"
    assert by_uid[uid(demo.DOSE)]["Reason"] is None, "it was selected"
    assert problem_rows(lake.read_table(IMAGE_SERIES, CHEST)) == []
    assert lake.count_rows(LICENSES, CHEST) == 1
    assert lake.read_rows(INSTANCES, CHEST, "SeriesInstanceUID", [uid(demo.CHEST_CT)], ["Size"]).num_rows == 18

    archive.faults.reset()
    again = followed(mirror, *CHOSEN)
    assert (again.receipts, again.there, again.lost) == ([], len(images), found.lost)
    assert archive.faults.calls(DOWNLOAD) == []

    # A plan of its collection by itself, with a selection that leaves it out, changes nothing of it.
    narrow = Selections({"*": {"modalities": ["PT"]}})
    plan = Mirror(mirror.client, lake, selections=narrow).plan(CHEST)
    assert {w.Collection for w in plan.todo} == {CHEST} and uid(demo.CHEST_CT) not in {
        w.SeriesInstanceUID for w in plan.todo
    }
    assert receipts(lake, CHEST)[uid(demo.CHEST_CT)] == chest
    mirror.plan(CHEST)
    assert receipts(lake, CHEST)[uid(demo.CHEST_CT)] == chest

    # If the archive changes it, the reason for that is not for whom it was fetched.
    rows = lake.read_table(SERIES, CHEST)
    changed = with_column(rows, "ImageCount", pa.repeat(pa.scalar(99), rows.num_rows))
    (finding,) = (f for f in incomplete(lake, CHEST, changed) if f.series == uid(demo.CHEST_CT))
    assert finding.what.endswith("is outdated: the archive changed it since it was fetched")


@pytest.mark.parametrize("key", demo.IMAGES_OF, ids=lambda key: "-".join(map(str, key)))
def test_the_closure_of_each_series_alone(key: Key, mirror: Mirror, request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--every-moment"):
        pytest.skip("make test-headers follows the references of each series alone")
    if key[0] not in (HEAD, CHEST):
        Mirror.update_tables(mirror, key[0])
    for expected in (set(map(uid, demo.IMAGES_OF[key])), set()):
        found = mirror.run(key[0], Selection(series=(uid(key),)), with_references=["images"]).referenced
        assert found is not None and fetched(found) == expected


def test_annotations_of_the_selected_images_and_what_these_refer_to(archive: TestArchive, mirror: Mirror) -> None:
    annotations = {
        *(demo.STRUCTURES, demo.PLAN, demo.DOSE, demo.SEG_OF_TWO, demo.REPORT, demo.PRESENTATION, demo.KEYS),
        *(demo.REGISTRATION, demo.SEG_OF_OTHER_STUDY, demo.SEG_OF_WRONG_SERIES),
    }
    found = followed(mirror, demo.CT, kinds=["annotations"])
    assert fetched(found) == set(map(uid, annotations))
    row = receipts(mirror.lake, HEAD)[uid(demo.REPORT)]
    assert row["Reason"] == f"may refer to the images of patient {demo.REPORT[1]}"

    # Both: also what those refer to which refer to the CT, directly or not; not what others do.
    archive.faults.reset()
    both = followed(mirror, demo.CT, kinds=KINDS)
    assert fetched(both) == set(map(uid, (demo.PET, demo.T1))), "T1 is that of the registration"
    assert archive.faults.count(DOWNLOAD) == 2
    assert fetched(followed(mirror, demo.CT, kinds=KINDS)) == set()
    # A segmentation of the same patient that is drawn on another CT: that is not fetched.
    others = {demo.SECOND_STRUCTURES, demo.ORPHAN, demo.SEG_OF_OTHER_COLLECTION}
    assert fetched(followed(mirror, demo.SECOND_CT, kinds=KINDS)) == set(map(uid, others))


def test_the_bounds_of_a_run_hold_for_all_of_it(mirror: Mirror) -> None:
    first = run(mirror, demo.SEG_OF_TWO, bounds=Bounds(max_series=2))
    assert first.referenced is not None
    assert (first.fetched, len(first.referenced.fetched), len(first.referenced.left)) == (1, 1, 1)
    enough = first.bytes + first.referenced.bytes
    # A thousand bytes more than the structure set has: too few for a series of images, though it comes first.
    size = {row["SeriesInstanceUID"]: row["FileSize"] for row in mirror.lake.read_table(SERIES, HEAD).to_pylist()}
    bounds = Bounds(max_bytes=size[uid(demo.SECOND_STRUCTURES)] + 1000)
    second = followed(mirror, demo.SEG_OF_TWO, demo.SECOND_STRUCTURES, bounds=bounds)
    assert (second.receipts, len(second.left)) == ([], 2)
    third = followed(mirror, demo.SEG_OF_TWO, demo.SECOND_STRUCTURES, bounds=Bounds(max_bytes=enough * 10))
    assert fetched(third) | fetched(first.referenced) == set(map(uid, (demo.CT, demo.PET, demo.SECOND_CT)))


class _Interrupted(_Mirror):
    def fetch(self, batch: Sequence[WantedSeries], **how: Any) -> list[Receipt]:
        if "for_whom" not in how:
            return super().fetch(batch, **how)
        super().fetch(batch[:1], **how)
        raise KeyboardInterrupt


def test_what_was_fetched_before_an_interrupt_is_committed(mirror: Mirror) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(_Interrupted(mirror.client, mirror.lake, annotations=False), demo.SEG_OF_TWO)
    stated = receipts(mirror.lake, HEAD)
    of = {stated[uid(key)]["Status"] for key in (demo.CT, demo.PET)}
    assert of == {"complete", "pending"}
    rest = followed(mirror, demo.SEG_OF_TWO)
    assert (len(rest.fetched), rest.there) == (1, 1)


def test_for_whom_a_killed_run_fetched_is_known_to_the_next(mirror: Mirror) -> None:
    (chest,) = (w for w in mirror.plan(CHEST).todo if w.SeriesInstanceUID == uid(demo.CHEST_CT))
    mirror.fetch([chest], for_whom={uid(demo.CHEST_CT): "referenced by SEG series 1.2 of HeadNeckMix"})
    mirror.plan(CHEST)
    row = receipts(mirror.lake, CHEST)[uid(demo.CHEST_CT)]
    assert (row["Status"], row["Reason"]) == ("complete", "referenced by SEG series 1.2 of HeadNeckMix")


def test_a_collection_that_no_table_lists(archive: TestArchive, mirror: Mirror) -> None:
    root = Path(mirror.lake.uri) / TABLES
    for folder in root.glob(f"*/Collection={CHEST}"):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    assert CHEST not in mirror.lake.collections_of(SERIES)
    assert fetched(followed(mirror, demo.SEG_OF_OTHER_COLLECTION)) == {uid(demo.CHEST_CT)}
    assert [row["Status"] for row in receipts(mirror.lake, CHEST).values()] == ["complete"], "nobody asked for the rest"
    archive.faults.reset()
    assert followed(mirror, demo.SEG_OF_OTHER_COLLECTION).there == 1
    asked = [call.query for call in archive.faults.calls("getSeries")]
    assert asked == [], "what is in the lake is not asked for"


def test_a_plan_says_what_can_be_known(mirror: Mirror) -> None:
    chosen = Selection(series=tuple(map(uid, (*CHOSEN, demo.SEG_OF_TWO))))

    def known(kinds: Sequence[str] = ("images",)) -> tuple[set[str], int, int, set[str]]:
        foreseen = foresee(mirror.lake, [HEAD], chosen, ALL_WANTED, kinds)
        return set(foreseen.series), foreseen.there, len(foreseen.unread), set(foreseen.unlisted)

    before = receipts(mirror.lake, HEAD)
    assert known() == (set(), 0, len(CHOSEN) + 1, set())
    of_patients, _, unread, _ = known(["annotations"])
    assert uid(demo.REPORT) in of_patients and unread == len(CHOSEN) + 1 + len(of_patients)
    assert receipts(mirror.lake, HEAD) == before == {}

    mirror.run(HEAD, chosen)
    # A plan and a dose do not state the series; only the archive knows which one has their target.
    series, there, unread, unlisted = known()
    assert series == set(map(uid, (demo.CT, demo.PET, demo.CHEST_CT, demo.T2)))
    assert (there, unread) == (0, 0)
    assert demo.UNKNOWN_SERIES in unlisted
    mirror.run(HEAD, chosen, with_references=["images"])
    assert known() == (set(), 6, 0, {demo.UNKNOWN_SERIES})


# --- in Dagster


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path_factory.mktemp("instance"))) as instance:
        instance.add_dynamic_partitions("nbia_collections", [HEAD])
        yield instance


def outcome(
    url: str, lake: Lake, instance: dg.DagsterInstance, **asked: Any
) -> tuple[dg.ExecuteInProcessResult, set[str]]:
    """Run the job of images for one collection; return its result, and which of its steps of images were skipped."""
    settings = Settings(archive=url, lake=lake.uri, images=(HEAD,), annotations=False)
    job = build_definitions(settings).resolve_job_def("nbia_images")
    config = images_config(Naming(), **asked)
    result = job.execute_in_process(instance=instance, partition_key=HEAD, run_config=config, raise_on_error=False)
    return result, {str(e.step_key) for e in result.all_events if e.event_type_value == "STEP_SKIPPED"}


def test_the_asset_follows_references_in_a_step_of_its_own(
    demo_archive: str, mirror: Mirror, instance: dg.DagsterInstance
) -> None:
    asked = {"series": [uid(demo.DOSE), uid(demo.ORPHAN)], "with_references": ["images"]}
    result, skipped = outcome(demo_archive, mirror.lake, instance, **asked)
    assert result.success and not skipped
    (made,) = (e for e in result.get_asset_materialization_events() if e.asset_key == Naming().key("images"))
    metadata = {name: value.value for name, value in made.step_materialization_data.materialization.metadata.items()}
    assert (metadata["fetched_series"], metadata["referenced_series"], metadata["referenced_not_found"]) == (2, 3, 1)
    assert metadata["complete"] == 5, "its last step counts what was fetched by references"
    statuses = {u for u, row in receipts(mirror.lake, HEAD).items() if row["Status"] == "complete"}
    assert statuses == set(map(uid, (demo.DOSE, demo.ORPHAN, *demo.IMAGES_OF[demo.DOSE])))


def test_a_run_without_references_skips_that_step(
    demo_archive: str, mirror: Mirror, instance: dg.DagsterInstance
) -> None:
    result, skipped = outcome(demo_archive, mirror.lake, instance, series=[uid(demo.DOSE)])
    assert result.success
    assert {key.rsplit(".", 1)[-1] for key in skipped} == {"nbia_fetch_references_of_images"}


def test_what_can_be_asked_for() -> None:
    with pytest.raises(SelectionError, match="names pictures: it can name images and annotations"):
        asked_of(["pictures", "images"], [HEAD], Selection(), Bounds())
    assert asked_of([], [HEAD], Selection(), Bounds()) == {}


# --- on the command line


@pytest.mark.parametrize(
    ("words", "kinds"),
    [
        ([], None),
        (["--with-references"], ["images"]),
        (["--with-references", "annotations"], ["annotations"]),
        (["--with-references", "both", "--modality", "CT"], ["images", "annotations"]),
    ],
)
def test_the_option_may_do_without_a_value(words: list[str], kinds: list[str] | None) -> None:
    options = command.make_context("run", words).params
    assert options["with_references"] == kinds
    assert references_fields(Options(**options)) == ({"with_references": kinds} if kinds else {})


def test_a_collection_after_the_option_is_not_taken_for_its_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--with-references", HEAD]) == 2
    assert f"{HEAD!r} is not one of images, annotations, both: name collections before" in capsys.readouterr().err


def test_a_plan_tells_what_references_lead_to(
    demo_archive: str, mirror: Mirror, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = mirror.lake
    lake.write_table(COLLECTIONS, pa.Table.from_pylist([{"Collection": HEAD}], COLLECTIONS.schema))
    words = ["plan", HEAD, "--lake", lake.uri, "--archive", demo_archive, "--modality", "SEG"]
    assert main([*words, "--json", "--with-references"]) == 0
    found = json.loads(capsys.readouterr().out)["references"]
    nothing = {"series": 0, "files": 0, "bytes": 0, "unsized": 0}
    assert found == {"to_fetch": nothing, "in_the_lake": 0, "unread": 5, "unlisted": 0}
    assert main([*words, "--with-references", "both"]) == 0
    assert "series of annotations to fetch and read before the rest is known: " in capsys.readouterr().out


def test_the_summary_of_a_run_tells_what_came_of_references() -> None:
    names = ("series", "files", "bytes", "there", "left", "failed", "not_found")
    figures = {f"referenced_{name}": n for n, name in enumerate(names, 1)}
    assert references_lines(figures) == [
        "Followed  references: 1 series fetched, 2 files, 3 B; 4 series were already in the lake; "
        "5 are left for a later run; 6 could not be fetched; 7 could not be resolved."
    ]
    assert references_lines({}) == []


# --- where the references are read


def test_references_come_from_the_tables_where_these_are_up_to_date(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, chosen = mirror.lake, Selection(series=tuple(map(uid, (demo.SEG_OF_TWO, demo.DOSE, demo.PLAN))))
    mirror.run(HEAD, chosen)
    held = selected(lake, [HEAD], chosen)
    read = edges.references_of(lake, held).sort_by([(name, "ascending") for name in edges.COLUMNS])
    of_two = read.filter(pc.equal(read[edges.UID], uid(demo.SEG_OF_TWO)))
    assert set(of_two[edges.STATED].drop_null().to_pylist()) == set(map(uid, (demo.CT, demo.PET)))
    assert set(read[edges.UID].to_pylist()) == {one.SeriesInstanceUID for one in held}

    for shard in plan_headers(lake, HEAD):
        write_shard(lake, shard)
    opened: list[str] = []
    monkeypatch.setattr(
        files, "read_files", lambda lake, read, add: opened.extend(one.SeriesInstanceUID for one in read)
    )
    again = edges.references_of(lake, held).sort_by([(name, "ascending") for name in edges.COLUMNS])
    assert again.equals(read) and opened == []
    # Another version of a series is not what the tables are about.
    edges.references_of(lake, [held[0]._replace(SeriesMD5="another"), *held[1:]])
    assert opened == [held[0].SeriesInstanceUID]
